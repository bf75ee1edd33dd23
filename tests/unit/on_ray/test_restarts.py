"""A driver that is lost and started again: every record once and in order, and an end to it."""

from dataclasses import replace

import pytest

from raygf.config.run import ResourceConfig, RunConfig, StorageConfig
from raygf.errors import DriverLost, ResourceError, RunFailed
from raygf.on_ray.restarts import RestartedDriver
from raygf.records import ExitScore, RoundRecord, RunEnd, RunStart

ROUNDS = 6
SCORE = ExitScore((1.0,), (0.5,))


def record(round):
    return RoundRecord(round, ROUNDS, round, 0.1, 0.1, SCORE, None, {"train": 1.0}, f"c{round}")


class World:
    """What outlives the drivers: checkpoints, faults to come, and what was seen."""

    def __init__(self, *faults, kind="LOST"):
        self.faults = list(faults)
        self.lost = DriverLost("it died", kind)
        self.done = 0
        self.configs: list[RunConfig] = []
        self.closed = 0
        self.said: list[str] = []
        self.refuse: ResourceError | None = None

    def fault(self, name):
        if self.faults and self.faults[0] == name:
            del self.faults[0]
            raise self.lost

    def start(self, config):
        self.configs.append(config)
        return FakeDriver(self)

    def driver(self, most=3):
        resources = ResourceConfig(max_driver_restarts=most)
        config = RunConfig(rounds=ROUNDS, resources=resources, storage=StorageConfig("x", "run"))
        return RestartedDriver(self.start, config, self.said.append)


class FakeDriver:
    """Checkpoints are numbers; "write 3" loses it before round 3 is stored, "hand 3" after."""

    def __init__(self, world):
        self.world = world

    def prepare(self):
        self.world.fault("prepare")
        if self.world.refuse and len(self.world.configs) > 1:
            raise self.world.refuse
        done = self.world.done
        recent = tuple(record(round) for round in range(max(1, done - 2), done + 1))
        return RunStart(done, 2, 1, 1, 1, (1,), (1,), ("t",), "cpu", recent=recent)

    def rounds(self, run_id):
        while self.world.done < ROUNDS:
            round = self.world.done + 1
            self.world.fault(f"write {round}")
            self.world.done = round
            self.world.fault(f"hand {round}")
            yield record(round)
        self.world.fault("test")

    def end(self):
        return RunEnd(self.world.done, 1, SCORE, "ab", "c", True)

    def close(self):
        self.world.closed += 1


def run(world, most=3):
    driver = world.driver(most)
    driver.prepare()
    records = list(driver.rounds("id"))
    assert driver.end().rounds == ROUNDS
    driver.close()
    return records


def test_an_undisturbed_run_is_passed_through():
    world = World()
    assert run(world) == [record(round) for round in range(1, ROUNDS + 1)]
    assert (len(world.configs), world.closed, world.said) == (1, 1, [])


@pytest.mark.parametrize(
    ("fault", "where", "told"),
    [
        ("write 1", "in round 1", 1),
        ("hand 1", "in round 1", 1),
        ("write 4", "in round 4", 4),
        ("hand 4", "in round 4", 4),
        (f"hand {ROUNDS}", f"in round {ROUNDS}", ROUNDS),
        ("test", "in the test", None),
    ],
)
def test_every_round_comes_once_whenever_the_driver_is_lost(fault, where, told):
    """The next record tells of the loss."""
    world = World(fault)
    records = run(world)
    assert world.faults == []
    assert [record.round for record in records] == list(range(1, ROUNDS + 1))
    assert [replace(r, notes=()) for r in records] == [record(round) for round in range(1, ROUNDS + 1)]
    assert len(world.configs) == 2 and world.configs[1].storage.resume
    assert [text.split(":")[0] for text in world.said] == [f"the driver was lost {where} (it died)"]
    notes = {record.round: record.notes for record in records if record.notes}
    assert notes == ({told: (f"driver restarted {where}: it died",)} if told else {})


def test_several_rounds_that_were_not_handed_out_come_from_the_checkpoint():
    """Very short rounds: the driver has stored two of them before the first one's record has arrived."""
    world = World("hand 3")
    driver = world.driver()
    driver.prepare()
    rounds = driver.rounds("id")
    assert [next(rounds).round, next(rounds).round] == [1, 2]
    world.done = 4  # before the fault, which is that of round 3, is seen
    world.faults = ["write 5"]
    assert [record.round for record in rounds] == [3, 4, 5, 6]


def test_a_driver_lost_without_progress_again_and_again_ends_the_run():
    world = World(*["write 3"] * 3)
    driver = world.driver(most=2)
    driver.prepare()
    seen = []
    with pytest.raises(
        RunFailed,
        match=r"^the driver was lost in round 3: it died; allow more .*; the last checkpoint stands",
    ) as c:
        seen.extend(record.round for record in driver.rounds("id"))
    assert type(c.value) is RunFailed and "\n" not in str(c.value)
    assert world.done == 2 and len(world.configs) == 3


def test_progress_forgives():
    world = World(*[f"write {round}" for round in range(1, ROUNDS + 1)])
    assert len(run(world, most=1)) == ROUNDS
    assert len(world.configs) == 1 + ROUNDS


def test_losses_while_it_is_started_again_count():
    world = World("write 2", "prepare", "prepare")
    with pytest.raises(RunFailed):
        run(world, most=2)
    assert run(World("write 2", "prepare", "prepare"), most=3)[-1].round == ROUNDS


@pytest.mark.parametrize("kind", ["MEMORY", "RAISED"])
def test_what_would_happen_again_is_not_tried_again(kind):
    world = World("write 2", kind=kind)
    with pytest.raises(RunFailed, match="the driver was lost in round 2: it died") as c:
        run(world)
    assert len(world.configs) == 1 and c.value.exit_code == 1


def test_before_it_was_prepared_a_new_run_stays_a_new_run():
    """Else checkpoints of another run, which would have been refused, would be gone on from."""
    world = World("prepare", "write 1")
    run(world)
    assert [config.storage.resume for config in world.configs] == [False, False, True]


def test_no_room_for_another_driver_is_a_failure_of_the_run():
    world = World("write 2")
    world.refuse = ResourceError("no node")
    with pytest.raises(
        RunFailed, match=r"lost in round 2 \(it died\) and could not be started again: no node"
    ) as c:
        run(world)
    assert c.value.exit_code == 1
