"""Plans of faults, one fault per line: parsed, written, and drawn at random.

    kill exit 2 in round 3 at step 5
    stick exit 1 in round 2
    nan exit 1 in round 2 at step 3
    exhaust exit 3 in round 1
    raise exit 3 in round 1
    delay exit 1 in round 5
    kill share in round 2 at step 3           (an actor that runs a share of the fusion pass)
    stick share in round 2
    kill driver in round 4                    (before it writes the checkpoint)
    kill driver in round 4 while it writes
    kill driver in round 4 after it writes
    fail write 2                              (the second try to write a checkpoint)
    drop node b in round 4
    kill job in round 4

Exits, rounds, steps and writes count from 1. A fault happens once; ``, 3 times`` at its end repeats it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

EXIT_FAULTS = ("kill", "stick", "nan", "exhaust", "raise", "delay")
MOMENTS = ("before it writes", "while it writes", "after it writes")

_FORMS = (
    rf"(?P<verb>{'|'.join(EXIT_FAULTS)}) exit (?P<exit>\d+) in round (?P<round>\d+)( at step (?P<step>\d+))?",
    r"(?P<verb>kill|stick) (?P<target>share) in round (?P<round>\d+)( at step (?P<step>\d+))?",
    rf"(?P<verb>kill) (?P<target>driver) in round (?P<round>\d+)( (?P<moment>{'|'.join(MOMENTS)}))?",
    r"(?P<verb>fail) (?P<target>write) (?P<write>\d+)",
    r"(?P<verb>drop) (?P<target>node) (?P<node>\w+) in round (?P<round>\d+)",
    r"(?P<verb>kill) (?P<target>job) in round (?P<round>\d+)",
)


@dataclass(frozen=True)
class Fault:
    """One fault. ``target``: exit, share, driver, write, node or job; unused fields have their defaults."""

    verb: str
    target: str = "exit"
    exit: int = 0
    round: int = 0
    step: int = 1
    moment: str = MOMENTS[0]
    write: int = 0
    node: str = ""

    def __str__(self) -> str:
        if self.target == "exit":
            return f"{self.verb} exit {self.exit} in round {self.round} at step {self.step}"
        if self.target == "share":
            return f"{self.verb} share in round {self.round} at step {self.step}"
        if self.target == "write":
            return f"fail write {self.write}"
        if self.target == "node":
            return f"drop node {self.node} in round {self.round}"
        moment = f" {self.moment}" if self.target == "driver" else ""
        return f"kill {self.target} in round {self.round}{moment}"


def parse(text: str) -> tuple[Fault, ...]:
    """The faults of a plan, one a line or separated by semicolons; a repeated one comes that often.

    Raises:
        ValueError: a line is not a fault.
    """
    lines = [line.strip() for line in re.split(r"[;\n]", text)]
    return tuple(fault for line in lines if line for fault in _repeated(line))


def _repeated(line: str) -> list[Fault]:
    found = re.fullmatch(r"(.*), (\d+) times", line)
    return [_fault(found[1])] * int(found[2]) if found else [_fault(line)]


def _fault(line: str) -> Fault:
    for form in _FORMS:
        if found := re.fullmatch(form, line):
            given = {name: value for name, value in found.groupdict().items() if value is not None}
            whole = {field.name for field in fields(Fault) if field.type == "int"}
            values: dict[str, Any] = {k: int(v) if k in whole else v for k, v in given.items()}
            return Fault(**values)
    raise ValueError(f"not a fault: {line!r}")


def draw(
    seed: int, rounds: int, exits: int, steps: int, targets: Sequence[str], most: int = 4
) -> tuple[Fault, ...]:
    """One to ``most`` faults that a run must survive with the same bits, in the order of their rounds.

    Args:
        rounds, exits, steps: of the run; ``steps`` in a round of one exit.
        targets: which kinds to draw from: exit, share, driver, write, node, job.
    """
    dice = random.Random(seed)
    faults: list[Fault] = []
    for _ in range(dice.randint(1, most)):
        target, round = dice.choice(targets), dice.randint(1, rounds)
        exit, step = dice.randint(1, exits), dice.randint(1, steps)
        choices = {
            "exit": Fault(dice.choice(["kill", "kill", "stick"]), "exit", exit, round, step),
            "share": Fault(dice.choice(["kill", "kill", "stick"]), "share", round=round, step=step),
            "driver": Fault("kill", "driver", round=round, moment=dice.choice(MOMENTS)),
            "write": Fault("fail", "write", write=round),
            "node": Fault("drop", "node", node="b", round=round),
            "job": Fault("kill", "job", round=round),
        }
        drawn = choices[target]
        alike = [fault for fault in faults if fault.target == target]
        if not (alike if target in ("node", "job") else target not in ("exit", "share") and drawn in alike):
            faults.append(drawn)  # a driver that has been killed after it wrote does not write that again
    return tuple(sorted(faults, key=lambda fault: fault.round or fault.write))
