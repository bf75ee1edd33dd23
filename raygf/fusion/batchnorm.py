"""BatchNorm running statistics averaged over the exits with the fusion weights of the layer's own scale."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raygf.errors import ConfigError
from raygf.training.space import Segments

Buffers = Mapping[str, Tensor]


def weighted_statistics(
    network: nn.Module, buffers: Sequence[Buffers], weights: Tensor, segments: Segments
) -> dict[str, Tensor]:
    """The merged buffers: ``mean = Σ_i α_i mean_i`` and ``var = Σ_i α_i var_i`` in every BatchNorm layer.

    The paper's first point of future work (Section 5). All other buffers are the last exit's.

    Args:
        network: tells which buffers belong to which BatchNorm.
        buffers: the n exits' buffers after their training.
        weights: α (n, S).
        segments: the segments that ``weights`` belongs to; α of a layer is that of its ``weight``.
    """
    numbers = dict(zip(segments.space.names, segments.of_slots, strict=True))
    merged = {name: value.clone() for name, value in buffers[-1].items()}
    for prefix in scaled_layers(network, segments.space.names):
        alpha = weights[:, numbers[prefix + "weight"]]  # (n, 1) or (n, C)
        for statistic in ("running_mean", "running_var"):
            stacked = torch.stack([b[prefix + statistic] for b in buffers])  # (n, C)
            merged[prefix + statistic] = (alpha.to(stacked) * stacked).sum(dim=0)
    return merged


def scaled_layers(network: nn.Module, trainable: Collection[str]) -> list[str]:
    """Name prefixes of the BatchNorm layers that keep running statistics.

    Raises ConfigError: one of them has no scale among the ``trainable`` tensors to take weights from.
    """
    prefixes = []
    for layer, module in network.named_modules():
        if not isinstance(module, _BatchNorm) or module.running_mean is None:
            continue
        prefixes.append(f"{layer}." if layer else "")
        if prefixes[-1] + "weight" not in trainable:
            raise ConfigError(
                f"fusion.batchnorm = 'weighted': {layer} has no trainable scale; use recalibrated"
            )
    return prefixes
