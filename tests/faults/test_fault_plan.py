"""Plans in plain words: read, written, and drawn so that a run can survive them."""

import pytest
from fault_plan import MOMENTS, Fault, draw, parse

TARGETS = ("exit", "driver", "write", "node", "job")


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
        *((line, None) for line in ("kill", "kill exit in round 3", "eat exit 1 in round 2", "fail write a")),
    ],
)
def test_lines_are_faults_and_back_or_refused(line, fault):
    if fault is not None:
        assert parse(line) == parse(str(fault)) == (fault,)
    else:
        with pytest.raises(ValueError, match=f"not a fault: '{line}'"):
            parse(line)


def test_a_plan_has_lines_and_repetitions():
    plan = parse("kill exit 1 in round 1, 2 times; fail write 1\n\n  fail write 2  ")
    twice = ["kill exit 1 in round 1 at step 1"] * 2
    assert [str(fault) for fault in plan] == [*twice, "fail write 1", "fail write 2"]
    assert parse("") == ()


def test_a_seed_always_draws_the_same_plan_and_others_draw_others():
    plans = [draw(seed, 6, 3, 4, TARGETS) for seed in range(50)]
    assert plans == [draw(seed, 6, 3, 4, TARGETS) for seed in range(50)]
    assert len(set(plans)) > 40


def test_plans_fit_the_run_every_kind_comes_and_what_can_happen_only_once_is_drawn_once():
    plans = [draw(seed, 6, 3, 4, TARGETS) for seed in range(300)]
    faults = [fault for plan in plans for fault in plan]
    assert {fault.target for fault in faults} == set(TARGETS)
    assert {fault.verb for fault in faults if fault.target == "exit"} == {"kill", "stick"}
    assert {fault.moment for fault in faults if fault.target == "driver"} == set(MOMENTS)
    assert all(1 <= (fault.round or fault.write) <= 6 for fault in faults)
    assert all(1 <= f.exit <= 3 and 1 <= f.step <= 4 for f in faults if f.target == "exit")
    assert all(parse(str(fault)) == (fault,) for fault in faults)
    for plan in plans:
        once = [fault for fault in plan if fault.target != "exit"]
        assert len(once) == len(set(once))
        assert all(sum(fault.target == target for fault in plan) <= 1 for target in ("node", "job"))
