"""The pool of exit actors: the bits of the local executor, whatever happens to its processes.

Faults are those of ``benchmarks/faults.py``: they lie in a folder that the actors look into.
"""

import os
import re
import signal
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import ray
from faults import DELAY_S, Faults
from ray.exceptions import RayError
from runs import raygf_actors, wait_until, with_resources

from raygf.compute import resolve_compute
from raygf.config.run import FusionConfig, ResourceConfig, RunConfig
from raygf.data.base import Dataset
from raygf.data.load import load_data
from raygf.errors import ExitFailed, NonFiniteError, RaygfError
from raygf.models.build import build_model
from raygf.on_ray import executor
from raygf.on_ray.executor import RayExecutor
from raygf.rounds.delta import DeltaRound
from raygf.training.exit_trainer import ExitUpdate, LocalExecutor
from raygf.training.network import BoundNetwork, NetworkState
from raygf.training.space import find_ownership

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors can't import this file

EXITS = 3
NONE = [None] * EXITS


class Doomed:
    """Stands in for the exit trainer: the process that makes it as the ``number``-th of all dies."""

    def __init__(self, faults, number):
        self.faults, self.number = faults, number

    def __call__(self, config, dataset):
        self.faults.log("made", os.getpid())
        if len(self.faults.logged("made")) == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.faults.trainer(config, dataset)


@dataclass(frozen=True)
class Bench:
    """What all tests here start from."""

    config: RunConfig
    dataset: Dataset
    state: NetworkState

    def local(self, round):
        """The round as it should be."""
        return LocalExecutor(self.config, self.dataset).train(self.state, round, NONE)


@pytest.fixture
def bench(small_config):
    # 1 252 held-out images make the data set large enough for Ray to keep it in shared memory.
    data = replace(small_config.data, val=1252)
    config = replace(small_config, rounds=40, data=data, method="delta-fisher")  # hands on the most
    dataset = load_data(config.data, config.seed)
    network = build_model(config.model, dataset.spec, config.seed)
    return Bench(config, dataset, BoundNetwork(network, resolve_compute(config.compute)).state())


@pytest.fixture(scope="module")
def shared_faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def kept():
    """Pools that live as long as the tests of this file."""
    pools: dict[str, RayExecutor] = {}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture
def pool(cluster, bench, shared_faults, kept):
    """Three actors. Every test that uses them takes a round of its own."""
    if "three" not in kept:
        kept["three"] = RayExecutor(bench.config, bench.dataset, EXITS, shared_faults.trainer)
    return kept["three"]


@pytest.fixture
def new_pool(cluster, bench, tmp_path, kept):
    """Makes a pool with resources and faults of its own, on a cluster that is free."""
    while kept:
        kept.popitem()[1].close()
    pools: list[RayExecutor] = []

    def make(doomed=0, fusion=FusionConfig(), **resources):  # noqa: B008 - it is frozen
        faults = Faults(tmp_path / "faults")
        config = replace(with_resources(bench.config, **resources), fusion=fusion)
        pools.append(RayExecutor(config, bench.dataset, EXITS, Doomed(faults, doomed)))
        return pools[-1], faults

    yield make
    for made in pools:
        made.close()


def assert_same_bits(trained, expected):
    """Equal in all that training determines; seconds and notes may differ."""
    assert [update.exit for update in trained.updates] == [0, 1, 2]
    for mine, theirs in zip(trained.updates, expected.updates, strict=True):
        assert mine.delta.tobytes() == theirs.delta.tobytes()
        assert mine.buffers.keys() == theirs.buffers.keys()
        for name, array in theirs.buffers.items():
            assert mine.buffers[name].tobytes() == array.tobytes(), name
        assert (mine.loss, mine.accuracy) == (theirs.loss, theirs.accuracy)
        assert mine.fisher.tobytes() == theirs.fisher.tobytes()
        assert np.abs(mine.delta).max() > 0


def pids_of(faults, exit, round):
    """The processes that a fault of ``exit`` (from 1) happened to in ``round``, in order."""
    marks = faults.fired()
    return [mark.pid for mark in marks if (mark.fault.exit, mark.fault.round) == (exit, round)]


def pids(pool):
    """The processes of the actors that have started."""
    places = [worker.place for worker in pool._pool.ready()]
    return [int(match[1]) for place in places if (match := re.search(r"\(pid (\d+)\)", place))]


def test_same_bits_as_the_local_executor(pool, bench):
    """By three actors; another round gives other bits, so equal ones mean something."""
    wait_until(lambda: pool.train(bench.state, 2, NONE) and len(set(pids(pool))) == EXITS)
    trained, other = pool.train(bench.state, 1, NONE), pool.train(bench.state, 3, NONE)
    assert_same_bits(trained, bench.local(1))
    assert other.updates[0].delta.tobytes() != trained.updates[0].delta.tobytes()
    assert trained.notes == ()
    assert trained.train_s == max(update.seconds for update in trained.updates)
    assert trained.broadcast_s > 0 and trained.wait_s >= 0


def test_updates_come_in_exit_order_whatever_order_they_finish_in(pool, bench, shared_faults):
    assert len(pids(pool)) == EXITS
    shared_faults.add("delay exit 1 in round 5")
    trained = pool.train(bench.state, 5, NONE)
    assert shared_faults.logged("ended-5")[-1] == 1
    assert sorted(shared_faults.logged("ended-5")) == [1, 2, 3]
    assert_same_bits(trained, bench.local(5))
    assert trained.updates[0].seconds > DELAY_S


def test_arrays_in_the_object_store_are_not_written_to(pool, bench, monkeypatch):
    refs: list[ray.ObjectRef] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: refs.append(put(value)) or refs[-1])
    before = bench.state.sha256()
    pool.train(bench.state, 6, NONE)
    pool.train(bench.state, 6, NONE)
    assert len(refs) == 2
    for ref in refs:
        stored = ray.get(ref, timeout=10)
        assert not stored.vector.flags.writeable  # a view of the store, not a copy
        assert stored.sha256() == before
    assert bench.state.sha256() == before
    dataset = ray.get(pool._pool.dataset, timeout=10)
    assert not dataset.train.images.flags.writeable
    for name in ("train", "val", "test"):
        assert dataset.splits[name].images.tobytes() == bench.dataset.splits[name].images.tobytes()
        assert dataset.splits[name].labels.tobytes() == bench.dataset.splits[name].labels.tobytes()


def test_killed_actors_are_replaced_and_the_bits_are_the_same(pool, bench, shared_faults):
    shared_faults.add("kill exit 1 in round 7")
    shared_faults.add("kill exit 3 in round 7")
    trained = pool.train(bench.state, 7, NONE)
    (first,), (third,) = pids_of(shared_faults, 1, 7), pids_of(shared_faults, 3, 7)
    assert_same_bits(trained, bench.local(7))
    notes = sorted(trained.notes)
    assert len(notes) == 2
    for note, exit, dead in zip(notes, (1, 3), (first, third), strict=True):
        said = rf"exit {exit} retried in round 7: ActorDiedError: .* on \S+ \(pid {dead}\)"
        assert re.fullmatch(said, note), note
        assert dead not in pids(pool)
    assert len(pool._pool.workers) == EXITS
    assert pool.train(bench.state, 8, NONE).notes == ()  # the next round is undisturbed


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (
            "raise exit 2 in round 11",
            ExitFailed,
            r"exit 2 could not be trained in round 11 on node \S+ \(pid {pid}\): ValueError: made-up "
            r"trouble; this would happen again, so it was not retried",
        ),
        (
            "exhaust exit 1 in round 12",
            ExitFailed,
            r"exit 1 could not be trained in round 12 on node \S+ \(pid {pid}\): MemoryError: made-up lack "
            r"of memory \(batches of .* MiB of weights.*batch_size.*resources\.actors.*",
        ),
        (
            "nan exit 3 in round 13",
            NonFiniteError,
            r"delta-fisher, exit 3, round 13: the loss of exit 1 became nan at step 1; .*",
        ),
    ],
    ids=["error", "memory", "not finite"],
)
def test_what_would_happen_again_is_named_and_not_retried(pool, bench, shared_faults, fault, kind, says):
    """And what was left running when the round ended with it does not disturb the next one."""
    shared_faults.add(f"{fault}, 2 times")
    words = fault.split()
    exit, round = int(words[2]), int(words[5])
    with pytest.raises(kind) as caught:
        pool.train(bench.state, round, NONE)
    (pid,) = pids_of(shared_faults, exit, round)  # one of the two: it was not tried again
    assert type(caught.value) is kind and caught.value.exit_code == 1
    assert re.fullmatch(says.format(pid=pid), str(caught.value)), str(caught.value)
    assert_same_bits(pool.train(bench.state, 14, NONE), bench.local(14))


def test_more_failures_than_allowed_name_the_last_one(new_pool, bench):
    """Every process that was lost is another one, and so is a failure of its own."""
    pool, faults = new_pool(actors=1, max_failures=1)
    faults.add("kill exit 2 in round 3 at step 3, 2 times")
    with pytest.raises(ExitFailed) as caught:
        pool.train(bench.state, 3, NONE)
    first, second = pids_of(faults, 2, 3)
    assert first != second
    assert (caught.value.exit, caught.value.round) == (1, 3)
    assert caught.value.node.endswith(f"(pid {second})")
    assert caught.value.cause.startswith("ActorDiedError: its worker process has died")
    assert caught.value.knob == "allow more retries with resources.max_failures"


def test_stuck_training_is_retried_elsewhere_and_then_ends_the_run(new_pool, bench):
    pool, faults = new_pool(actors=1, max_failures=1, exit_timeout_s=2.0)
    faults.add("stick exit 1 in round 2, 5 times")
    (first,) = pids(pool)
    with pytest.raises(ExitFailed) as caught:
        pool.train(bench.state, 2, NONE)
    assert 1 <= len(pids_of(faults, 1, 2)) <= 2  # on a busy machine a call may take as long to begin
    wait_until(lambda: not psutil.pid_exists(first))
    assert (caught.value.exit, caught.value.round) == (0, 2)
    assert caught.value.cause == "no result within 2 s"
    (second,) = pids(pool)
    assert second != first
    assert caught.value.node.endswith(f"(pid {second})")
    assert caught.value.knob == "give it more time with resources.exit_timeout_s"


REPLICAS = (1, 1, 2)


def test_replicas_share_a_training_and_are_retried_as_one(new_pool, bench):
    """With the bits of one process that does the work of both; one is killed, later one gets stuck."""
    shared = replace(bench, config=with_resources(bench.config, replicas=REPLICAS))
    pool, faults = new_pool(actors=2, replicas=REPLICAS, exit_timeout_s=6.0)
    faults.add("kill exit 3 in round 2 at step 2; stick exit 3 in round 3")
    assert_same_bits(pool.train(bench.state, 1, NONE), shared.local(1))
    assert sorted(faults.logged("replicas-1")) == [0, 1]
    trained = pool.train(bench.state, 2, NONE)
    assert_same_bits(trained, shared.local(2))
    (dead,) = pids_of(faults, 3, 2)
    (note,) = trained.notes
    assert re.fullmatch(rf"exit 3 retried in round 2: ActorDiedError: .* on \S+ \(pid {dead}\)", note)
    assert sorted(faults.logged("replicas-2")) == [0, 0, 1, 1]
    assert trained.updates[2].delta.tobytes() != bench.local(2).updates[2].delta.tobytes()
    stuck = pool.train(bench.state, 3, NONE)
    assert_same_bits(stuck, shared.local(3))
    assert stuck.notes[0].startswith("exit 3 retried in round 3: no result within 6 s")


def test_actors_lost_in_a_shared_fusion_pass_are_replaced_and_the_bits_are_the_same(new_pool, bench):
    """Three shares on two actors: one is killed in round 1, one sticks in round 2; round 3 only merges."""
    fusion = FusionConfig(shards=3)
    config = replace(bench.config, fusion=fusion, method="metagf")
    pool, faults = new_pool(actors=2, fusion=fusion, exit_timeout_s=4.0)
    faults.add("kill share in round 1 at step 2; stick share in round 2 at step 1")

    def three_rounds(executor):
        network = build_model(config.model, bench.dataset.spec, config.seed)
        bound = BoundNetwork(network, resolve_compute(config.compute))
        owned = find_ownership(network, bench.dataset.spec.blank(2), bound.space)
        batches = bench.dataset.open(bound.compute, config.batch_size, 100)
        learning, state, notes = DeltaRound(config, bound, batches, executor, owned), bench.state, []
        merging = DeltaRound(replace(config, method="delta-fisher"), bound, batches, executor, owned)
        for round, method in enumerate((learning, learning, merging), start=1):
            outcome = method.run(state, round)
            state, notes = outcome.state, [*notes, *outcome.notes]
        return state.sha256(), notes

    sha, notes = three_rounds(pool)
    first, second = (note for note in notes if note.startswith("fusion pass "))  # slow exits may be, too
    assert (sha, []) == three_rounds(LocalExecutor(replace(config, method="delta-fisher"), bench.dataset))
    killed, _ = (mark.pid for mark in faults.fired())
    said = rf"fusion pass retried in round 1: ActorDiedError: .* on \S+ \(pid {killed}\)"
    assert re.fullmatch(said, first)
    assert second.startswith("fusion pass retried in round 2: GetTimeoutError: no answer within 4 s")


def test_actor_that_dies_while_it_starts_is_replaced_and_closing_ends_those_that_start(new_pool, bench):
    """The first of the pool, which is waited for, like any other."""
    wait_until(lambda: not raygf_actors("ExitActor"))
    pool, faults = new_pool(doomed=1, actors=2)
    assert len(faults.logged("made")) >= 2
    (running, *_) = pids(pool)
    assert running in {process.pid for process in raygf_actors("ExitActor")}
    assert_same_bits(pool.train(bench.state, 1, NONE), bench.local(1))
    pool._pool.replace(pool._pool.workers[0])  # starts
    pool.close()
    wait_until(lambda: not raygf_actors("ExitActor"), 15, "the end of all actors, also of those that start,")


def test_actor_that_can_not_start_is_an_error_for_people(cluster, bench, tmp_path):
    """A constructor that raises would raise again: one line, with the cause."""

    def missing(config, dataset):
        raise OSError("made-up library is missing here")

    with pytest.raises(RaygfError, match="made-up library is missing here"):
        RayExecutor(with_resources(bench.config, actors=1), bench.dataset, EXITS, missing)


class Asleep:
    """Ray and a pool of which nothing is real; time passes in ``wait``, as told.

    ``steps``: for every wait, the seconds that it takes and how many results lie there then.
    """

    def __init__(self, monkeypatch, steps):
        self.now, self.there, self.steps, self.replaced = 0.0, 0, iter(steps), []
        self.workers = [SimpleNamespace(actor=self, place="n", slot=0) for _ in range(EXITS)]
        self.train, self.put = SimpleNamespace(remote=lambda *training: training[4]), lambda state: state
        self.ready, self.starting, self.busy = lambda: self.workers, dict, lambda: None
        monkeypatch.setattr(executor, "monotonic", lambda: self.now)
        monkeypatch.setattr(executor, "ray", self)
        monkeypatch.setattr(executor, "_fetch", lambda exit: ExitUpdate(exit, NONE, {}, 0.0, 0.0, 1.0))
        monkeypatch.setattr(executor, "ExitPool", lambda *_: self)

    def wait(self, refs, num_returns, timeout):
        if timeout:
            seconds, self.there = next(self.steps)
            self.now += seconds
        done = [ref for ref in refs if ref < self.there][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    def replace(self, worker):
        self.replaced.append(worker)


@pytest.mark.parametrize(
    ("steps", "retried"),
    [
        ([(1.0, 0), (1000.0, 3)], 0),  # all ended while the driver slept
        ([*[(1.0, 2)] * 11, (1.0, 3)], 1),  # nobody sleeps, the third is stuck
    ],
)
def test_a_driver_that_slept_takes_no_training_for_stuck(monkeypatch, steps, retried):
    it = Asleep(monkeypatch, steps)
    config = RunConfig(resources=ResourceConfig(exit_timeout_s=10.0))
    pool = RayExecutor(config, it, EXITS)  # type: ignore[arg-type]
    trained = pool.train(NetworkState(np.zeros(1, np.float32), {}), 1, NONE)
    assert [update.exit for update in trained.updates] == [0, 1, 2]
    assert len(it.replaced) == len(trained.notes) == retried


def test_replicas_that_are_lost_at_once_are_one_failure(monkeypatch):
    it, refs = Asleep(monkeypatch, [(1.0, 2), (1.0, 4)]), iter(range(4))
    it.train, it.meet = (SimpleNamespace(remote=lambda *training: next(refs)), SimpleNamespace(remote=str))

    def fetch(ref):
        if ref < 2:
            raise RayError("its node has died")
        return ExitUpdate(0, NONE, {}, 0.0, 0.0, 1.0) if ref == 2 else None

    monkeypatch.setattr(executor, "_fetch", fetch)
    config = RunConfig(resources=ResourceConfig(replicas=(2,), max_failures=1))
    pool = RayExecutor(config, it, 1)  # type: ignore[arg-type]
    trained = pool.train(NetworkState(np.zeros(1, np.float32), {}), 1, [None])
    assert len(it.replaced) == 2 and len(trained.notes) == len(trained.updates) == 1


class Hog:
    """Takes CPUs."""

    def ready(self):
        return True


@pytest.mark.timeout(30)
def test_replacement_that_can_not_be_placed_ends_the_run(new_pool, bench, monkeypatch):
    """Somebody else has taken the place of the lost actor: an error after the limit, no wait without end."""
    pool, faults = new_pool(actors=1)
    monkeypatch.setattr("raygf.on_ray.placement.START_S", 2.0)
    hogs = [ray.remote(Hog).options(num_cpus=cpus).remote() for cpus in (3, 1)]  # the second waits for a CPU
    try:
        assert ray.get(hogs[0].ready.remote(), timeout=30)
        faults.add("kill exit 1 in round 1")
        with pytest.raises(RaygfError, match="within 2 s"):
            pool.train(bench.state, 1, NONE)
        assert len(pids_of(faults, 1, 1)) == 1
    finally:
        for hog in hogs:
            ray.kill(hog)
