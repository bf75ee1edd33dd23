"""Two workers that train together do what one does alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import two_workers

from raygf.methods.registry import STEP_METHODS
from raygf.training.peers import ALONE, Peers, average_buffers, share_of

APART = "two_workers:forgetful, round 1: the workers' weights have come apart"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return two_workers.together(tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="module")
def single() -> dict[str, Any]:
    return two_workers.alone()


def both(pair: list[dict[str, Any]], name: str) -> list[Any]:
    return [told["exchange"][name] for told in pair]


def test_what_two_workers_exchange(pair):
    tenth = torch.tensor(0.1).item()
    assert both(pair, "rank") == [(0, 2, True), (1, 2, False)]
    assert both(pair, "sum") == [[3.0, 21.0]] * 2
    assert both(pair, "first") == [[1.0, 10.0]] * 2
    assert both(pair, "made") == [({"from": 0}, [0]), ({"from": 0}, [])]  # made by the first alone
    assert both(pair, "same") == [(True, False)] * 2  # the others differ in a bit
    assert both(pair, "buffers") == [[[tenth, 1.5], 7], [[tenth, 1.5], 8]]  # counters are left


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
    assert first["sha"] == second["sha"]
    np.testing.assert_allclose(first["vector"], one["vector"], rtol=1e-5, atol=5e-6)
    assert np.abs(one["vector"] - start()).max() > 0.1
    assert first["score"].accuracy == second["score"].accuracy == one["score"].accuracy
    assert first["score"].loss == pytest.approx(one["score"].loss, rel=1e-5)


def start() -> np.ndarray:
    return np.asarray(two_workers.BoundNetwork(two_workers.seeded(two_workers.plain), two_workers.CPU).vector)


def test_random_weightings_agree_though_dropout_draws_differently(pair):
    first, second = [told["dropout"] for told in pair]
    assert first["sha"] == second["sha"]


def test_batchnorm_statistics_end_up_the_same(pair, single):
    first, second = [told["batchnorm"] for told in pair]
    name = next(name for name in first["buffers"] if name.endswith("running_mean"))
    assert np.array_equal(first["buffers"][name], second["buffers"][name])
    assert first["buffers"][name].any()
    assert first["sha"] == second["sha"] != single["batchnorm"]["sha"]


class Alike(Peers):
    """Three workers that hold the same."""

    count = 3

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.add_(tensor.clone()).add_(tensor / 2)


def test_the_mean_of_equal_buffers_is_that_buffer():
    values = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    buffers = [values.clone()]
    average_buffers(buffers, Alike())
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
