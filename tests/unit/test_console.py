"""What a terminal and a log file get to see of a run."""

import io
import math
import os
from dataclasses import replace

import pytest

from raygf.console import Progress, duration, print_table
from raygf.evaluation.tables import ResultColumn, ResultTable, to_rich
from raygf.records import ExitScore, RoundRecord, RunStart

START = RunStart(
    round=0,
    classes=10,
    train_images=900,
    val_images=300,
    test_images=597,
    parameters=(30_000, 60_000, 90_000),
    operations=(350_000, 800_000, 1_200_000),
    tensors=("a", "b"),
    setting="cpu, fp32",
    notes=("on the CPU",),
)
TABLE = ResultTable(
    (350_000,), (30_000,), tuple(ResultColumn(f"a long title {i}", [[0.5]], 1, [1.0]) for i in range(5))
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def record(number: int, seconds: float = 1.9, val: bool = True, notes: tuple[str, ...] = ()) -> RoundRecord:
    score = ExitScore((1.1, 1.2, 1.402), (0.712, 0.801, 0.83))
    phases = {"train": seconds - 0.4, "fuse": 0.4}
    return RoundRecord(number, 40, 4, 0.1, 0.1, score, score if val else None, phases, "c", notes=notes)


def test_plain_output_is_exact():
    out = io.StringIO()
    with Progress(out) as progress:
        progress.start(START)
        progress.round(record(3))
        progress.round(record(4, notes=("exit 2 was retried",)))
        progress.note("hello")
        progress.round(record(40))
    assert out.getvalue() == (
        "900 training, 300 validation, 597 test images, 10 classes; "
        "3 exits of 0.350 0.800 1.200 M operations; cpu, fp32\n"
        "note: on the CPU\n"
        "round 3/40  1.9 s  loss 1.234  val 71.2 80.1 83.0 (avg 78.1) %  eta 1m10s\n"
        "round 4/40  1.9 s  loss 1.234  val 71.2 80.1 83.0 (avg 78.1) %  eta 1m08s\n"
        "note: exit 2 was retried\n"
        "note: hello\n"
        "round 40/40  1.9 s  loss 1.234  val 71.2 80.1 83.0 (avg 78.1) %\n"
    )


def test_without_validation_the_training_is_shown_and_named():
    out = io.StringIO()
    Progress(out).round(record(40, val=False))
    assert out.getvalue() == "round 40/40  1.9 s  loss 1.234  train 71.2 80.1 83.0 (avg 78.1) %\n"


def test_a_skipped_round_says_so():
    out = io.StringIO()
    nothing = ExitScore((math.nan,) * 3, (math.nan,) * 3)
    skipped = replace(record(40), train=nothing, skipped=True, notes=("round 40 skipped",))
    Progress(out).round(skipped)
    Progress(out).round(replace(skipped, val=None))
    assert out.getvalue() == (
        "round 40/40  1.9 s  skipped  val 71.2 80.1 83.0 (avg 78.1) %\nnote: round 40 skipped\n"
        "round 40/40  1.9 s  skipped\nnote: round 40 skipped\n"
    )


def test_what_was_said_when_it_came_up_is_not_said_again():
    out = io.StringIO()
    progress = Progress(out)
    progress.note("the disk is full; trying again")
    progress.round(record(40, notes=("the disk is full; trying again", "exit 1 was retried")))
    notes = [line for line in out.getvalue().splitlines() if line.startswith("note")]
    assert notes == ["note: the disk is full; trying again", "note: exit 1 was retried"]


def test_one_slow_round_does_not_spoil_the_estimate():
    out = io.StringIO()
    progress = Progress(out)
    for number, seconds in enumerate((1.0, 1.0, 500.0), start=28):
        progress.round(record(number, seconds))
    assert out.getvalue().splitlines()[-1].endswith("eta 10s")


def test_the_estimate_ends_where_the_run_will_stop():
    out = io.StringIO()
    progress = Progress(out, last_round=5)
    progress.round(record(3, 10.0))
    progress.round(record(5, 10.0))
    assert [line.partition("%")[2] for line in out.getvalue().splitlines()] == ["  eta 20s", ""]


@pytest.mark.parametrize("columns", ["200", "20"])
def test_a_terminal_gets_a_bar_and_every_row(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Progress(out) as progress:
        progress.start(START)
        progress.round(record(3))
        progress.note("[bold] is not markup")
    text = out.getvalue()
    assert "\x1b[" in text  # it drew
    words = " ".join(text.split())
    assert "round 3/40" in words
    assert "[bold] is not markup" in words
    if columns == "200":
        assert "round 3/40  1.9 s  loss 1.234  val 71.2 80.1 83.0 (avg 78.1) %  eta 1m10s" in text


def test_a_stream_that_is_gone_does_not_end_a_run():
    closed = io.StringIO()
    closed.close()
    for stream in (Gone(), closed):
        with Progress(stream) as progress:
            progress.start(START)
            progress.round(record(3))
        print_table(to_rich(TABLE), stream)


def test_a_pipe_closed_by_its_reader_does_not_end_a_run():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", closefd=True) as stream:
        Progress(stream).round(record(3))
        print_table(to_rich(TABLE), stream)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # so that closing can flush what is left
        os.close(null)


def test_characters_the_stream_lacks_do_not_end_a_run():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    progress = Progress(stream)
    progress.note("Δ")
    progress.note("plain")
    assert stream.buffer.getvalue().decode().endswith("note: plain\n")


def test_a_table_in_a_file_is_not_squeezed():
    out = io.StringIO()
    print_table(to_rich(TABLE), out)
    assert "a long title 4 test accuracy (%)" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (70, "1m10s"),
        (3599.6, "1h00m"),
        (7400, "2h03m"),
        (86399, "1d00h"),
        (273600, "3d04h"),
    ],
)
def test_durations_show_their_two_largest_units(seconds, text):
    assert duration(seconds) == text
