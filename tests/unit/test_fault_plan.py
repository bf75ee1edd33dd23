"""Plans in plain words: read, written, and drawn so that a run can survive them."""

from __future__ import annotations

import pytest
from fault_plan import MOMENTS, Fault, draw, parse


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("kill exit 2 in round 3 at step 5", Fault("kill", "exit", 2, 3, 5)),
        ("stick exit 1 in round 2", Fault("stick", "exit", 1, 2, 1)),
        ("nan exit 1 in round 2 at step 3", Fault("nan", "exit", 1, 2, 3)),
        ("kill driver in round 4", Fault("kill", "driver", round=4, moment="before it writes")),
        (
            "kill driver in round 4 while it writes",
            Fault("kill", "driver", round=4, moment="while it writes"),
        ),
        ("fail write 2", Fault("fail", "write", write=2)),
        ("drop node b in round 4", Fault("drop", "node", node="b", round=4)),
        ("kill job in round 4", Fault("kill", "job", round=4)),
    ],
)
def test_lines_are_faults_and_back(line, fault):
    assert parse(line) == (fault,)
    assert parse(str(fault)) == (fault,)


def test_a_plan_has_lines_and_repetitions():
    plan = parse("kill exit 1 in round 1, 2 times; fail write 1\n\n  fail write 2  ")
    assert [str(fault) for fault in plan] == [
        *["kill exit 1 in round 1 at step 1"] * 2,
        "fail write 1",
        "fail write 2",
    ]
    assert parse("") == ()


@pytest.mark.parametrize(
    "line",
    ["kill", "kill exit in round 3", "kill exit x in round 3", "eat exit 1 in round 2", "fail write two"],
)
def test_what_is_no_fault_is_refused(line):
    with pytest.raises(ValueError, match=f"not a fault: '{line}'"):
        parse(line)


TARGETS = ("exit", "driver", "write", "node", "job")


def test_a_seed_always_draws_the_same_plan_and_others_draw_others():
    plans = [draw(seed, 6, 3, 4, TARGETS) for seed in range(50)]
    assert plans == [draw(seed, 6, 3, 4, TARGETS) for seed in range(50)]
    assert len(set(plans)) > 40


def test_plans_fit_the_run_and_every_kind_comes():
    faults = [fault for seed in range(200) for fault in draw(seed, 6, 3, 4, TARGETS)]
    assert {fault.target for fault in faults} == set(TARGETS)
    assert {fault.verb for fault in faults if fault.target == "exit"} == {"kill", "stick"}
    assert {fault.moment for fault in faults if fault.target == "driver"} == set(MOMENTS)
    assert all(1 <= fault.round <= 6 for fault in faults if fault.target != "write")
    assert all(1 <= fault.write <= 6 for fault in faults if fault.target == "write")
    assert all(1 <= f.exit <= 3 and 1 <= f.step <= 4 for f in faults if f.target == "exit")
    assert all(parse(str(fault)) == (fault,) for fault in faults)


def test_what_can_happen_only_once_is_drawn_only_once():
    for seed in range(300):
        plan = draw(seed, 3, 3, 3, TARGETS)
        once = [fault for fault in plan if fault.target in ("node", "job", "driver", "write")]
        assert len(once) == len(set(once))
        assert sum(fault.target == "node" for fault in plan) <= 1
        assert sum(fault.target == "job" for fault in plan) <= 1
