"""Ray prints nothing inside ``silent_ray``, by the function with which it prints what raylets report."""

from __future__ import annotations

import pytest
from ray._private.worker import print_to_stdstream

from raygf.on_ray.cluster import silent_ray


def report(text: str) -> None:
    print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)


def test_silence_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), silent_ray():
        report("a worker died")
        raise KeyError
    report("another one did")
    printed = capsys.readouterr().out
    assert "another one did" in printed and "a worker died" not in printed
