"""Whatever dies, the weights are those of an undisturbed run; ``benchmarks/faults.py`` makes the faults."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from faults import Faults
from runs import local_driver, raygf_actors, wait_until, with_resources

from raygf.config.run import RunConfig, StorageConfig
from raygf.on_ray.cluster import with_gpus
from raygf.on_ray.driver import RemoteDriver
from raygf.records import RoundRecord
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import CheckpointStore, load_checkpoint
from raygf.training.exit_trainer import LocalExecutor

EXITS, STEPS = 3, 3
_DIED = r"ActorDiedError: its worker process has died \([^()]*\)"


@dataclass
class Survived:
    """A run that faults happened to."""

    records: list[RoundRecord]
    sha256: str
    said: list[str]
    faults: Faults

    @property
    def notes(self) -> dict[int, tuple[str, ...]]:
        """By round, of those that have any."""
        return {record.round: record.notes for record in self.records if record.notes}


@pytest.fixture
def config(small_config: RunConfig) -> RunConfig:
    return replace(small_config, rounds=5)


@pytest.fixture(scope="module")
def hashes() -> dict[int, str]:
    return {}


@pytest.fixture
def undisturbed(config: RunConfig, hashes: dict[int, str], tmp_path: Path) -> dict[int, str]:
    """The weights after each round, in one process."""
    if not hashes:
        storage = StorageConfig(str(tmp_path / "undisturbed"), "small", keep=config.rounds)
        driver = local_driver(replace(config, storage=storage))
        driver.prepare()
        for record in driver.rounds(""):
            hashes[record.round] = load_checkpoint(record.checkpoint).network.sha256()
        assert driver.end().weights_sha256 == hashes[config.rounds]
        driver.close()
    assert len(set(hashes.values())) == config.rounds
    return hashes


@pytest.fixture
def survive(cluster: str, tmp_path: Path) -> Iterator[Callable[..., Survived]]:
    """Runs a configuration on the shared cluster while the faults of a plan happen to it."""

    def run(config: RunConfig, plan: str) -> Survived:
        faults, said = Faults(tmp_path / "faults"), []
        faults.add(plan)
        config = replace(config, resources=with_gpus(config.resources))
        driver = RemoteDriver(config, notify=said.append, parts=faults.parts())
        try:
            driver.prepare()
            records = list(driver.rounds("a-run"))
            return Survived(records, driver.end().weights_sha256, said, faults)
        finally:
            driver.close()
            assert faults.waiting() == [], "a fault has not happened"

    yield run


def rounds_of(run: Survived) -> list[int]:
    return [record.round for record in run.records]


def test_every_exit_is_killed_in_one_round(
    survive: Callable[..., Survived], config: RunConfig, undisturbed: dict[int, str]
) -> None:
    config = replace(config, stop_after=1)
    rounds, exits = range(1, 2), range(1, EXITS + 1)
    plan = [f"kill exit {e} in round {r} at step {1 + (e + r) % STEPS}" for r in rounds for e in exits]
    run = survive(with_resources(config, max_failures=EXITS), "\n".join(plan))
    assert run.sha256 == undisturbed[1]
    assert rounds_of(run) == list(rounds)
    assert len({fired.pid for fired in run.faults.fired()}) == len(plan) == 3
    killed = {(fired.fault.exit, fired.fault.round): fired.pid for fired in run.faults.fired()}
    for round in rounds:
        said = sorted(run.notes[round])
        assert len(said) == EXITS
        for exit, note in zip(exits, said, strict=True):
            pid = killed[exit, round]
            assert re.fullmatch(
                rf"exit {exit} retried in round {round}: {_DIED} on \S+ \(pid {pid}\)", note
            ), note


def test_driver_is_killed_while_and_after_it_writes(
    survive: Callable[..., Survived], config: RunConfig, undisturbed: dict[int, str]
) -> None:
    plan = "kill driver in round 3 while it writes; kill driver in round 4 after it writes"
    run = survive(with_resources(config, actors=1), plan)
    assert run.sha256 == undisturbed[5]
    assert rounds_of(run) == [1, 2, 3, 4, 5]
    assert sorted(run.notes) == [3, 4]
    for round, notes in run.notes.items():
        assert any(re.fullmatch(rf"driver restarted in round {round}: {_DIED}", note) for note in notes), (
            notes
        )
    assert len([text for text in run.said if "starting it again, from the last checkpoint" in text]) == 2
    # Trained again was only what had no checkpoint yet.
    assert [len(run.faults.logged(f"ended-{round}")) // EXITS for round in range(1, 6)] == [1, 1, 2, 1, 1]
    store = CheckpointStore(config.storage.path, config.storage.name, config.storage.keep)
    assert store.newest()[0].network.sha256() == undisturbed[5]
    assert store.newest()[0].meta["run_id"] == "a-run"
    assert sorted(path.name for path in Path(store.folder).iterdir()) == [
        *("round-000004.npz", "round-000005.npz"),
    ]
    assert wait_until(lambda: not raygf_actors())  # those of dead drivers have gone with them


def test_everything_at_once(
    survive: Callable[..., Survived], config: RunConfig, undisturbed: dict[int, str]
) -> None:
    """A stuck exit, a disk that is full for a moment, a dead exit and a dead driver in one round."""
    plan = (
        "stick exit 1 in round 2 at step 2; fail write 2; kill exit 2 in round 3; "
        "kill driver in round 3 before it writes; fail write 5"
    )
    run = survive(with_resources(config, actors=2, exit_timeout_s=3.0), plan)
    assert run.sha256 == undisturbed[5]
    assert rounds_of(run) == [1, 2, 3, 4, 5]
    text = "\n".join(note for notes in run.notes.values() for note in notes)
    assert re.search(r"exit 1 retried in round 2: no result within 3 s on \S+ \(pid \d+\)", text)
    assert text.count("No space left on device; earlier checkpoints stand; trying again after 1 s") == 2
    assert re.search(r"driver restarted in round 3", text)
    assert [said for said in run.said if "No space left" in said]


def test_a_round_that_diverges_in_an_actor_is_skipped_with_the_bits_of_one_process(
    survive: Callable[..., Survived], config: RunConfig, tmp_path: Path
) -> None:
    skipping = replace(config, on_divergence="skip-round")
    plan = "nan exit 3 in round 2 at step 2; nan exit 2 in round 2 at step 3; nan exit 1 in round 4"
    run = survive(skipping, plan)
    assert [record.round for record in run.records if record.skipped] == [2, 4]
    (note,) = run.notes[2]  # of those that diverged, always the first is named
    assert note.startswith(
        "round 2 skipped, the network is as it was before: metagf, exit 2, round 2: the loss of exit 1 "
        "became nan at step 3; not finite after the last step: "
    )
    storage = replace(config.storage, path=str(tmp_path / "local"))
    assert run.sha256 == local_hash(replace(skipping, storage=storage), plan)


def local_hash(config: RunConfig, plan: str) -> str:
    """The same in one process; a fault that ends a round leaves those of later exits in it waiting."""
    faults = Faults(Path(config.storage.path) / "faults")
    faults.add(plan)

    class Faulty(LocalExecutor):
        def __init__(self, run: RunConfig, data: Any) -> None:
            super().__init__(run, data)
            self._trainer = faults.trainer(run, data)

    driver = Driver(config, lambda run, data, exits: Faulty(run, data))
    driver.prepare()
    assert [record.skipped for record in driver.rounds("")] == [False, True, False, True, False]
    found = driver.end().weights_sha256
    driver.close()
    return found
