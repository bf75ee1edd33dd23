"""What is shown at the end of all tests."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The losses of all pairs of a network and a method that were trained (see integration/test_pairs.py)."""
    reports = terminalreporter.stats.get("passed", [])
    found = [value for report in reports for name, value in report.user_properties if name == "pair"]
    if found:
        from pair_bench import Pair, loss_table

        terminalreporter.section("networks x methods: training loss in round 1 → round 2")
        terminalreporter.write(loss_table([Pair(**value) for value in found]))
