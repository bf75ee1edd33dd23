"""Whatever dies, the weights are those of an undisturbed run; ``faults.py`` makes the faults of a plan."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from faults import Faults
from runs import checkpoints_left, raygf_actors, wait_until, with_resources

from raygf.on_ray.cluster import with_gpus
from raygf.on_ray.driver import RemoteDriver
from raygf.records import RoundRecord
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import CheckpointStore
from raygf.training.exit_trainer import LocalExecutor

EXITS, ROUNDS = 3, 7
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


def test_everything_at_once(survive, config, tmp_path):
    """A stuck exit, a disk that is full for a moment, a dead exit, drivers that die before, while and after
    they write, a round that diverges and is skipped."""
    # Not in round 6, which may begin before the driver dies: a fault happens once.
    diverging = "nan exit 3 in round 7 at step 2; nan exit 2 in round 7 at step 3"
    plan = (
        "stick exit 1 in round 2 at step 2; fail write 2; kill exit 2 in round 3; "
        "kill driver in round 3 before it writes; kill driver in round 4 while it writes; "
        f"kill driver in round 5 after it writes; fail write 7; {diverging}"
    )
    skipping = replace(config, on_divergence="skip-round")
    run = survive(with_resources(skipping, actors=1, exit_timeout_s=5.0), plan)
    storage = replace(config.storage, path=str(tmp_path / "local"))
    assert run.sha256 == hash_in_this_process(replace(skipping, storage=storage), diverging)
    assert run.rounds == [1, 2, 3, 4, 5, 6, 7]
    assert [record.round for record in run.records if record.skipped] == [7]
    text = "\n".join(note for notes in run.notes.values() for note in notes)
    assert re.search(r"exit 1 retried in round 2: no result within 5 s on \S+ \(pid \d+\)", text)
    assert text.count("No space left on device; earlier checkpoints stand; trying again after 1 s") == 2
    for round in (3, 4, 5):
        said = rf"driver restarted in round {round}: {_DIED}"
        assert any(re.fullmatch(said, note) for note in run.notes[round]), run.notes[round]
    assert len([said for said in run.said if "starting it again, from the last checkpoint" in said]) == 3
    assert [said for said in run.said if "No space left" in said]
    assert any(  # of those that diverged, always the first is named
        note.startswith(
            "round 7 skipped, the network is as it was before: metagf, exit 2, round 7: the loss of exit 1 "
            "became nan at step 3; not finite after the last step: "
        )
        for note in run.notes[7]
    )
    # Trained again was only what had no checkpoint yet; the round after had perhaps begun.
    ended = [len(run.faults.logged(f"ended-{round}")) / EXITS for round in range(1, 6)]
    assert ended[:3] == [1, 1, 2] and 2 <= ended[3] <= 3 and 1 <= ended[4] <= 2
    store = CheckpointStore(config.storage.path, config.storage.name, config.storage.keep)
    newest, _ = store.newest()
    assert newest is not None and newest.meta["run_id"] == "a-run"
    assert newest.network.sha256() == run.sha256
    assert checkpoints_left(store.folder) == ["round-000006.npz", "round-000007.npz"]
    wait_until(lambda: not raygf_actors(), 30)  # those of dead drivers have gone with them


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
    assert [record.skipped for record in driver.rounds("")] == [False] * 6 + [True]
    found = driver.end().weights_sha256
    driver.close()
    return found
