import pytest
import torch
from tiny_network import bind, random_batches, seeded, three_exits, torch_epoch, vector_of
from torch.testing import assert_close

from raygf.config.run import OptimConfig
from raygf.errors import ConfigError, NonFiniteError, name_function
from raygf.training.sgd import FlatOptimizer, check_optimizer, train_epoch
from raygf.training.space import Stretches

BATCHES = random_batches(5)
TORCHS = {"sgd": torch.optim.SGD, "adamw": lambda to, lr, b: torch.optim.AdamW(to, lr, (b, 0.999))}


def train(bound, optimizer, batches=BATCHES):
    return train_epoch(bound, optimizer, batches, lambda losses: sum(losses).backward(), "here")


def groups(network, decay, norms=True):
    """Torch's parameter groups: matrices and kernels, and all else, which may not decay."""
    kernels, rest = ([p for p in network.parameters() if (p.ndim > 1) is kind] for kind in (True, False))
    return [{"params": kernels, "weight_decay": decay}, {"params": rest, "weight_decay": decay * norms}]


@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.parametrize(
    ("momentum", "decay", "norms"), [(0.0, 0, True), (0.8, 0.1, True), (0.9, 0.1, False)]
)
def test_an_epoch_in_train_mode_equals_torchs(name, momentum, decay, norms):
    bound, reference = bind(), seeded(three_exits)
    bound.network.eval()
    optim = OptimConfig(momentum=momentum, weight_decay=decay, decay_norms=norms, optimizer=name)
    train(bound, optimizer := FlatOptimizer(bound, optim, 0.05))
    torch_epoch(reference, BATCHES, TORCHS[name](groups(reference, decay, norms), 0.05, momentum))
    expected = reference.state_dict()
    for place, tensor in bound.network.state_dict().items():
        assert_close(tensor, expected[place], msg=place)
    assert not torch.equal(bound.vector, bind().vector)
    assert ("momentum" in optimizer.state) is (momentum > 0 or name == "adamw")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_steps_kernels_as_matrices_and_adamw_the_rest():
    bound, reference = bind(), seeded(three_exits)
    optimizer = FlatOptimizer(bound, OptimConfig(weight_decay=0.1, optimizer="muon", decay_norms=False), 0.05)
    kernels, rest = (group["params"] for group in groups(reference, 0.1))
    views = [kernel.detach().flatten(1) for kernel in kernels]
    muon = torch.optim.Muon(views, 0.05, 0.1, 0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, 0.05, weight_decay=0.0)
    for _ in range(3):
        bound.grad.copy_(bound.vector.sin())
        for weight in (*views, *rest):
            weight.grad = weight.detach().sin()
        for each in (optimizer, muon, adamw):
            each.step()
    assert_close(bound.vector, vector_of(reference))


@pytest.mark.parametrize(("name", "kernels", "rest"), [("sgd", 0.949, 0.95), ("adamw", 0.899, 0.9)])
def test_one_step_by_hand(name, kernels, rest):
    """W = 1 and gradient 0.5 everywhere, η = 0.1, λ = 0.01; AdamW's first step is η long."""
    bound = bind()
    bound.vector.fill_(1)
    bound.grad.fill_(0.5)
    optim = OptimConfig(weight_decay=0.01, optimizer=name, decay_norms=False)
    FlatOptimizer(bound, optim, 0.1, trained=Stretches.of(bound.space, [True] * 14 + [False])).step()
    for weight in [*bound.network.parameters()][:-1]:
        assert_close(weight.data, torch.full_like(weight, kernels if weight.ndim > 1 else rest))
    assert bound.vector[-3:].tolist() == [1.0] * 3


@pytest.mark.parametrize("name", TORCHS)
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


def test_an_optimiser_of_ones_own_moves_the_flat_vector():
    own = OptimConfig(optimizer=name_function(lambda tensors, lr: torch.optim.SGD(tensors, lr, 0.9)))
    one, two = bind(), bind()
    train(one, FlatOptimizer(one, own, 0.05))
    train(two, FlatOptimizer(two, OptimConfig(weight_decay=0), 0.05))
    assert_close(one.vector, two.vector)


def test_muon_is_refused_where_torch_has_none(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=r"'muon': torch \S+ has none; take 2\.9, or adamw$"):
        check_optimizer(OptimConfig(optimizer="muon"))


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
