import pytest
import torch
from tiny_network import bind, random_batches, seeded, three_exits, torch_epoch
from torch.testing import assert_close

from raygf.config.run import OptimConfig
from raygf.errors import NonFiniteError
from raygf.training.sgd import FlatSGD, train_epoch

BATCHES = random_batches(5)


def train(bound, optimizer, batches=BATCHES):
    return train_epoch(bound, optimizer, batches, lambda losses: sum(losses).backward(), "here")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_an_epoch_in_train_mode_equals_torchs_sgd(momentum, weight_decay):
    bound, reference = bind(), seeded(three_exits)
    bound.network.eval()
    optimizer = FlatSGD(bound, OptimConfig(momentum=momentum, weight_decay=weight_decay), 0.05)
    place = bound.grad.data_ptr()
    train(bound, optimizer)
    sgd = torch.optim.SGD(reference.parameters(), 0.05, momentum, weight_decay=weight_decay)
    torch_epoch(reference, BATCHES, sgd)
    expected = reference.state_dict()
    for name, tensor in bound.network.state_dict().items():
        assert_close(tensor, expected[name], msg=name)
    assert not torch.equal(bound.vector, bind().vector)
    assert (optimizer.momentum is None) is (momentum == 0)
    optimizer.zero_grad()  # keeps the memory
    assert not bound.grad.any()
    assert bound.grad.data_ptr() == next(bound.network.parameters()).grad.data_ptr() == place


def test_momentum_handed_over_continues_the_run():
    optim = OptimConfig(weight_decay=0.01)
    whole, parts = bind(), bind()
    train(whole, FlatSGD(whole, optim, 0.05))
    first = FlatSGD(parts, optim, 0.05)
    assert first.momentum is None
    train(parts, first, BATCHES[:2])
    handed = first.momentum.clone()
    train(parts, FlatSGD(parts, optim, 0.05, handed), BATCHES[2:])
    assert torch.equal(parts.vector, whole.vector)
    assert torch.equal(handed, first.momentum)  # it was copied: the old buffer is not written


def test_errors_name_the_training_and_the_step():
    def backward(losses):
        seen.append(losses)
        if len(seen) == 3:
            raise NonFiniteError("the gradient of exit 1 is not finite")
        sum(losses).backward()

    seen, bound = [], bind()
    optimizer = FlatSGD(bound, OptimConfig(), 0.05)
    with pytest.raises(NonFiniteError, match=r"^here, step 3: the gradient of exit 1 .*; lower optim\.lr$"):
        train_epoch(bound, optimizer, BATCHES, backward, "here")
    with pytest.raises(NonFiniteError, match=r"^here: .* at step 2; not finite after the last step: stages"):
        train(bound, FlatSGD(bound, OptimConfig(momentum=0.0), float("inf")))
