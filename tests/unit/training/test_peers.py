"""Two workers that train together do what one does alone."""

import numpy as np
import pytest
import torch
import two_workers
from tiny_network import vector_of

from raygf.methods.registry import STEP_METHODS
from raygf.training.peers import ALONE, Peers, average_buffers, share_of

APART = "two_workers:forgetful, round 1: the workers' weights have come apart"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return two_workers.together(tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="module")
def single():
    return two_workers.all_tasks(ALONE)


def test_what_two_workers_exchange(pair):
    first, second = [told["exchange"] for told in pair]
    tenth = torch.tensor(0.1).item()
    assert (first["rank"], second["rank"]) == ((0, 2, True), (1, 2, False))
    assert first["sum"] == second["sum"] == [3.0, 21.0]
    assert first["first"] == second["first"] == [1.0, 10.0]
    assert (first["made"], second["made"]) == (({"from": 0}, [0]), ({"from": 0}, []))  # by the first alone
    assert first["same"] == second["same"] == (True, False)  # the others differ in a bit
    assert (first["buffers"], second["buffers"]) == ([[tenth, 1.5], 7], [[tenth, 1.5], 8])  # not counters


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_cover_a_batch_and_their_means_add_up_to_its_mean(count):
    """A batch too small for all is run whole by every worker, and counts once."""
    for size in range(1, 12):
        values = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        shares = []
        for rank in range(count):
            peers = Peers()
            peers.rank, peers.count = rank, count
            shares.append(share_of((values, torch.arange(size)), peers))
        images, labels, weights = zip(*shares, strict=True)
        assert all(len(part) >= min(size, 2) for part in labels)
        if size >= 2 * count:
            assert torch.cat(labels).tolist() == list(range(size))
        else:
            assert weights == (1.0,) + (0.0,) * (count - 1)
        total = sum(part.mean() * weight for part, weight in zip(images, weights, strict=True))
        assert total.item() == pytest.approx(values.mean().item(), rel=1e-12)


@pytest.mark.parametrize("name", STEP_METHODS)
def test_two_workers_agree_with_one(pair, single, name):
    one, (first, second) = single["trained"][name], [told["trained"][name] for told in pair]
    start = vector_of(two_workers.seeded(two_workers.plain)).numpy()
    assert first["sha"] == second["sha"]
    np.testing.assert_allclose(first["vector"], one["vector"], rtol=1e-5, atol=5e-6)
    assert np.abs(one["vector"] - start).max() > 0.1
    assert first["score"].accuracy == second["score"].accuracy == one["score"].accuracy
    assert first["score"].loss == pytest.approx(one["score"].loss, rel=1e-5)


def test_workers_agree_though_dropout_and_batchnorm_differ(pair, single):
    for kind in ("dropout", "batchnorm"):
        first, second = [told[kind] for told in pair]
        assert first["sha"] == second["sha"] != single[kind]["sha"]
        means = [array for name, array in first["buffers"].items() if name.endswith("running_mean")]
        assert len(means) == (kind == "batchnorm") and all(mean.any() for mean in means)


def test_the_mean_of_equal_buffers_is_that_buffer():
    """Three workers that hold the same."""
    values = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    peers, buffers = Peers(), [values.clone()]
    peers.count, peers.sum_ = 3, lambda tensor: tensor.add_(tensor.clone()).add_(tensor / 2)
    average_buffers(buffers, peers)
    assert torch.equal(buffers[0], values)


def test_both_stop_where_one_alone_meets_a_nan(pair):
    assert pair[0]["nan"] == pair[1]["nan"]
    sgd, pcgrad = pair[0]["nan"].splitlines()
    assert sgd.startswith("NonFiniteError: sgd, round 1: the loss of exit 1 became nan at step 3;")
    assert pcgrad.startswith("NonFiniteError: pcgrad, round 1, step 3: the gradient of exit 1 is not finite;")


def test_weights_that_come_apart_are_an_error(pair, single):
    assert single["forgetful"] == ""
    for told in pair:
        assert told["forgetful"].startswith(APART)
        assert "bound.peers.sum_" in told["forgetful"]


def test_alone_nothing_is_exchanged():
    tensor = torch.tensor([1.0, 2.0])
    assert ALONE.sum_(tensor) is tensor and ALONE.first_(tensor) is tensor and ALONE.same(tensor)
    assert ALONE.from_first(lambda: 3) == 3
    assert (ALONE.rank, ALONE.count, ALONE.first) == (0, 1, True)
