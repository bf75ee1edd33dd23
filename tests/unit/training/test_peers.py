"""Two workers that train together do what one does alone."""

import numpy as np
import pytest
import torch
import two_workers
from tiny_network import plain, vector_of

from raygf.errors import PeersLost
from raygf.methods.registry import STEP_METHODS
from raygf.training.peers import ALONE, joined, meeting_place

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


@pytest.mark.parametrize("name", STEP_METHODS)
def test_two_workers_agree_with_one(pair, single, name):
    one, (first, second) = single["trained"][name], [told["trained"][name] for told in pair]
    start = vector_of(two_workers.seeded(plain)).numpy()
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
    assert (list(ALONE.ranks), ALONE.count, ALONE.first) == ([0], 1, True)


def test_replicas_in_two_processes_have_the_bits_of_one_that_does_the_work_of_both(pair, single):
    alone, both = single["replica"], [told["replica"] for told in pair]
    for update in both:
        assert update.delta.tobytes() == alone.delta.tobytes()
        assert update.buffers.keys() == alone.buffers.keys()
        assert all(np.array_equal(update.buffers[name], alone.buffers[name]) for name in alone.buffers)
        assert (update.loss, update.accuracy) == (alone.loss, alone.accuracy)


def test_a_replica_whose_others_are_gone_says_so():
    store, address = meeting_place("127.0.0.1")
    with pytest.raises(PeersLost, match="another replica was lost"), joined(address, 1, 2, "gloo", 0.5):
        pass
    del store
