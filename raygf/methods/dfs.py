"""Deep Feature Surgery: Gong, Chen, Luo, Lu, Li, Zhang, Sun, Zhang, "Deep Feature Surgery: Towards Accurate
and Efficient Multi-Exit Networks", ECCV 2024.

The C channels of the features ``f_i`` at the branch of exit i are parted into ``f_i⁺``, the first round(βC),
which train for the deeper exits, and ``f_i⁻``, the rest, which train for exit i. Forward, the head and the
next stage both read all of them (feature referencing); backward, the gradient of ``f_i⁺`` comes from deeper
alone and that of ``f_i⁻`` from the head alone (feature partitioning). So exits share fewer weights to pull
at. The last exit has all of its features to itself, and one exit alone is plain SGD.

Everything stands as the authors' README and their ResNet, VGG and BERT have it; the helper that their MSDNet
uses lets the head's gradient into ``f_i⁺``, too. Fewer operations, as their split layers need, are not to be
had with one unchanged network: the steps take as long as those of joint SGD.
"""

from torch import Tensor

from raygf.methods.base import Setting
from raygf.methods.branches import Branch, BranchMethod, Change
from raygf.models.multi_exit import ChannelsFirst, MultiExitNetwork


class DeepFeatureSurgery(BranchMethod):
    """Every channel at a branch gets its gradient either from the head or from deeper."""

    def __init__(self, setting: Setting) -> None:
        beta = setting.config.dfs_beta
        super().__init__("dfs", setting.network, lambda network, exit: partition(network, exit, beta))


def partition(network: MultiExitNetwork, exit: int, beta: float) -> Branch:
    """What each side of the branch of ``exit`` (from 0) keeps of its gradient.

    ``beta`` (0–1): the share β of channels that train for deeper exits.
    """
    if exit + 1 == len(network.heads):
        return Branch(lambda gradient: gradient, lambda gradient: gradient)
    last = any(isinstance(module, ChannelsFirst) for module in network.heads[exit].modules())
    return Branch(_kept(beta, last, shared=False), _kept(beta, last, shared=True))


def _kept(beta: float, channels_last: bool, shared: bool) -> Change:
    """A gradient with zeros in the channels of the other side.

    Its shape is (B, C, H, W), or (B, H, W, C) with ``channels_last``; (B, T, C) of tokens; or (B, C).
    """

    def change(gradient: Tensor) -> Tensor:
        axis = -1 if channels_last or gradient.dim() == 3 else 1
        channels = gradient.shape[axis]
        split = round(beta * channels)
        kept = gradient.clone()
        other = kept.narrow(axis, split, channels - split) if shared else kept.narrow(axis, 0, split)
        other.zero_()
        return kept

    return change
