"""Ctrl-C once and twice, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from raygf.cli import interruptible

PROGRAM = """
import signal, sys, time
from raygf.interrupts import interruptible

def say(text):
    print(text, flush=True)

with interruptible(*sys.argv[2:]) as again:
    signal.signal(signal.SIGTERM, lambda *_: say("somebody else's handler"))  # as Ray's start does
    again()
    try:
        say("ready")
        time.sleep(60)
    except KeyboardInterrupt:
        say("cleaning up")
        if "slow" in sys.argv:
            time.sleep(60)
        say("clean")
        sys.exit(7)
"""


def start(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_ends_cleanly(first):
    program = start()
    assert program.stdout.readline() == "ready\n"
    program.send_signal(first)
    out, err = program.communicate(timeout=30)
    assert (out, err, program.returncode) == ("cleaning up\nclean\n", "", 7)


@pytest.mark.parametrize(
    ("first", "second", "flags"),
    [
        (signal.SIGINT, signal.SIGINT, "--storage.resume True"),
        (signal.SIGTERM, signal.SIGINT, "--storage.resume True"),
        (signal.SIGINT, signal.SIGTERM, "--resume --storage.name mine"),
    ],
)
def test_the_second_ends_at_once(first, second, flags):
    program = start("slow", *([flags] if "mine" in flags else []))
    assert program.stdout.readline() == "ready\n"
    program.send_signal(first)
    assert program.stdout.readline() == "cleaning up\n"
    program.send_signal(second)
    out, err = program.communicate(timeout=30)
    assert (out, program.returncode) == ("", 130)
    assert err == f"\ninterrupted again: stopped at once; go on with {flags}\n"


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_leave_them_alone():
    seen = []

    def body() -> None:
        with interruptible() as again:
            again()
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before]
