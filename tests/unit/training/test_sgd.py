import pytest
import torch
from tiny_network import bind, random_batches, seeded, three_exits, torch_epoch, vector_of
from torch.testing import assert_close

from raygf.config.run import OptimConfig
from raygf.errors import ConfigError, NonFiniteError
from raygf.training.sgd import FlatOptimizer, check_optimizer, train_epoch
from raygf.training.space import Stretches

BATCHES = random_batches(5)


def train(bound, optimizer, batches=BATCHES):
    return train_epoch(bound, optimizer, batches, lambda losses: sum(losses).backward(), "here")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_an_epoch_in_train_mode_equals_torchs_sgd(momentum, weight_decay):
    bound, reference = bind(), seeded(three_exits)
    bound.network.eval()
    optimizer = FlatOptimizer(bound, OptimConfig(momentum=momentum, weight_decay=weight_decay), 0.05)
    place = bound.grad.data_ptr()
    train(bound, optimizer)
    sgd = torch.optim.SGD(reference.parameters(), 0.05, momentum, weight_decay=weight_decay)
    torch_epoch(reference, BATCHES, sgd)
    expected = reference.state_dict()
    for name, tensor in bound.network.state_dict().items():
        assert_close(tensor, expected[name], msg=name)
    assert not torch.equal(bound.vector, bind().vector)
    assert ("momentum" in optimizer.state) is (momentum > 0)
    optimizer.zero_grad()  # keeps the memory
    assert not bound.grad.any()
    assert bound.grad.data_ptr() == next(bound.network.parameters()).grad.data_ptr() == place


def groups(network, decay, norms):
    """Torch's parameter groups: matrices and kernels, and all else, which may not decay."""
    kinds = [p for p in network.parameters() if p.ndim > 1], [p for p in network.parameters() if p.ndim < 2]
    return [{"params": kind, "weight_decay": decay * on} for kind, on in zip(kinds, (1, norms), strict=True)]


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda groups: torch.optim.SGD(groups, 0.05, 0.8)),
        ("adamw", lambda groups: torch.optim.AdamW(groups, 0.05, (0.8, 0.999))),
    ],
)
def test_an_epoch_equals_torchs_optimisers_and_decays_what_it_should(name, make, norms):
    bound, reference = bind(), seeded(three_exits)
    optim = OptimConfig(0.05, 0.8, 0.1, optimizer=name, decay_norms=norms)
    train(bound, FlatOptimizer(bound, optim, 0.05))
    torch_epoch(reference, BATCHES, make(groups(reference, 0.1, norms)))
    assert_close(bound.vector, vector_of(reference))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_steps_kernels_as_matrices_and_adamw_the_rest():
    bound, reference = bind(), seeded(three_exits)
    optimizer = FlatOptimizer(bound, OptimConfig(weight_decay=0.1, optimizer="muon", decay_norms=False), 0.05)
    kernels, rest = (group["params"] for group in groups(reference, 0.1, False))
    views = [kernel.detach().flatten(1) for kernel in kernels]
    muon = torch.optim.Muon(views, 0.05, 0.1, 0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, 0.05, weight_decay=0.0)
    for _ in range(3):
        for weight in bound.network.parameters():
            weight.grad.copy_(weight.detach().sin())
        optimizer.step()
        for view, kernel in zip(views, kernels, strict=True):
            view.grad = kernel.detach().sin().flatten(1)
        for weight in rest:
            weight.grad = weight.detach().sin()
        muon.step(), adamw.step()
    assert_close(bound.vector, vector_of(reference))


def test_one_step_by_hand():
    """W = 1 and gradient 0.5 everywhere, η = 0.1, λ = 0.01; AdamW's first step has the length η."""
    for name, kernels, rest in (("sgd", 1 - 0.1 * 0.51, 0.95), ("adamw", 0.999 - 0.1, 0.9)):
        bound = bind()
        bound.vector.fill_(1)
        bound.grad.fill_(0.5)
        optim = OptimConfig(weight_decay=0.01, optimizer=name, decay_norms=False)
        FlatOptimizer(bound, optim, 0.1, trained=Stretches.of(bound.space, [True] * 14 + [False])).step()
        for slot, weight in zip(bound.space.slots, bound.network.parameters(), strict=True):
            moved = kernels if len(slot.shape) > 1 else rest
            assert_close(weight.data, torch.full(slot.shape, 1.0 if slot.name == "heads.2.2.bias" else moved))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_kept_continues_the_run(name):
    optim = OptimConfig(weight_decay=0.01, optimizer=name)
    whole, parts = bind(), bind()
    train(whole, FlatOptimizer(whole, optim, 0.05))
    first = FlatOptimizer(parts, optim, 0.05)
    assert all(not kept.any() for kept in first.state.values())
    train(parts, first, BATCHES[:2])
    handed = {name: kept.clone() for name, kept in first.state.items()}
    train(parts, FlatOptimizer(parts, optim, 0.05, first.state), BATCHES[2:])
    assert torch.equal(parts.vector, whole.vector)
    assert all(torch.equal(kept, first.state[name]) for name, kept in handed.items())  # it was copied


def test_errors_name_the_training_and_the_step():
    def backward(losses):
        seen.append(losses)
        if len(seen) == 3:
            raise NonFiniteError("the gradient of exit 1 is not finite")
        sum(losses).backward()

    seen, bound = [], bind()
    optimizer = FlatOptimizer(bound, OptimConfig(), 0.05)
    with pytest.raises(NonFiniteError, match=r"^here, step 3: the gradient of exit 1 .*; lower optim\.lr$"):
        train_epoch(bound, optimizer, BATCHES, backward, "here")
    with pytest.raises(NonFiniteError, match=r"^here: .* at step 2; not finite after the last step: stages"):
        train(bound, FlatOptimizer(bound, OptimConfig(momentum=0.0), float("inf")))


def test_muon_is_refused_where_torch_has_none(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(
        ConfigError, match=r"^optim\.optimizer = 'muon': torch \S+ has none; take 2\.9, or adamw$"
    ):
        check_optimizer(OptimConfig(optimizer="muon"))
    check_optimizer(OptimConfig(optimizer="adamw"))
