"""Whatever dies, the weights are those of an undisturbed run; ``faults.py`` makes the faults of a plan."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from faults import Faults
from runs import checkpoints_left, raygf_actors, run_here, wait_until, with_resources
from tiny import tiny_run

from raygf.config.run import StorageConfig
from raygf.on_ray.cluster import with_gpus
from raygf.on_ray.driver import RemoteDriver
from raygf.records import RoundRecord
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import CheckpointStore, load_checkpoint
from raygf.training.exit_trainer import LocalExecutor

EXITS, STEPS, ROUNDS = 3, 3, 5
_DIED = r"ActorDiedError: its worker process has died \([^()]*\)"


@dataclass
class Survived:
    """A run that faults happened to."""

    records: list[RoundRecord]
    sha256: str
    said: list[str]
    faults: Faults

    @property
    def notes(self):
        """By round, of those that have any."""
        return {record.round: record.notes for record in self.records if record.notes}

    @property
    def rounds(self):
        return [record.round for record in self.records]


@pytest.fixture
def config(small_config):
    return replace(small_config, rounds=ROUNDS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights after each round, in one process."""
    storage = StorageConfig(str(tmp_path_factory.mktemp("undisturbed")), "small", keep=ROUNDS)
    records, _ = run_here(tiny_run(ROUNDS, EXITS, storage))
    hashes = {record.round: load_checkpoint(record.checkpoint).network.sha256() for record in records}
    assert len(set(hashes.values())) == ROUNDS
    return hashes


@pytest.fixture
def survive(cluster, tmp_path):
    """Runs a configuration on the shared cluster while the faults of a plan happen to it."""

    def run(config, plan):
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

    return run


def test_driver_is_killed_while_and_after_it_writes(survive, config, undisturbed):
    """Before it writes: ``test_everything_at_once``."""
    plan = "kill driver in round 2 while it writes; kill driver in round 3 after it writes"
    run = survive(with_resources(replace(config, stop_after=4), actors=1), plan)
    assert (run.rounds, run.sha256) == ([1, 2, 3, 4], undisturbed[4])
    assert sorted(run.notes) == [2, 3]
    for round, notes in run.notes.items():
        said = rf"driver restarted in round {round}: {_DIED}"
        assert any(re.fullmatch(said, note) for note in notes), notes
    assert len([text for text in run.said if "starting it again, from the last checkpoint" in text]) == 2
    # Trained again was only what had no checkpoint yet; the round after had perhaps begun.
    ended = [len(run.faults.logged(f"ended-{round}")) / EXITS for round in range(1, 5)]
    assert ended[:2] == [1, 2] and 1 <= ended[2] <= 2 and 1 <= ended[3] <= 2
    store = CheckpointStore(config.storage.path, config.storage.name, config.storage.keep)
    newest, _ = store.newest()
    assert newest is not None and newest.meta["run_id"] == "a-run"
    assert newest.network.sha256() == undisturbed[4]
    assert checkpoints_left(store.folder) == ["round-000003.npz", "round-000004.npz"]
    wait_until(lambda: not raygf_actors(), 15)  # those of dead drivers have gone with them


def test_everything_at_once(survive, config, tmp_path):
    """A stuck exit, a disk that is full for a moment, a dead exit and a dead driver in one round, a round
    that diverges and is skipped."""
    diverging = "nan exit 3 in round 5 at step 2; nan exit 2 in round 5 at step 3"
    plan = (
        "stick exit 1 in round 2 at step 2; fail write 2; kill exit 2 in round 3; "
        f"kill driver in round 3 before it writes; fail write 5; {diverging}"
    )
    skipping = replace(config, on_divergence="skip-round")
    run = survive(with_resources(skipping, actors=2, exit_timeout_s=5.0), plan)
    storage = replace(config.storage, path=str(tmp_path / "local"))
    assert run.sha256 == hash_in_this_process(replace(skipping, storage=storage), diverging)
    assert run.rounds == [1, 2, 3, 4, 5]
    assert [record.round for record in run.records if record.skipped] == [5]
    text = "\n".join(note for notes in run.notes.values() for note in notes)
    assert re.search(r"exit 1 retried in round 2: no result within 5 s on \S+ \(pid \d+\)", text)
    assert text.count("No space left on device; earlier checkpoints stand; trying again after 1 s") == 2
    assert re.search(r"driver restarted in round 3", text)
    assert [said for said in run.said if "No space left" in said]
    assert any(  # of those that diverged, always the first is named
        note.startswith(
            "round 5 skipped, the network is as it was before: metagf, exit 2, round 5: the loss of exit 1 "
            "became nan at step 3; not finite after the last step: "
        )
        for note in run.notes[5]
    )


def hash_in_this_process(config, plan):
    """A fault that ends a round leaves those of later exits in it waiting."""
    faults = Faults(Path(config.storage.path) / "faults")
    faults.add(plan)

    class Faulty(LocalExecutor):
        def __init__(self, run, data):
            super().__init__(run, data)
            self._trainer = faults.trainer(run, data)

    driver = Driver(config, lambda run, data, exits: Faulty(run, data))
    driver.prepare()
    assert [record.skipped for record in driver.rounds("")] == [False, False, False, False, True]
    found = driver.end().weights_sha256
    driver.close()
    return found
