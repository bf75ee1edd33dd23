"""What a terminal and a log file get to see of a run."""

import io
import math
import os
from dataclasses import replace

import pytest

from raygf.console import Progress, print_table
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
COLUMNS = tuple(ResultColumn(f"a long title {i}", [(0.5,)], 1, [1.0]) for i in range(5))
TABLE = ResultTable((350_000,), (30_000,), COLUMNS)
SCORE = ExitScore((1.1, 1.2, 1.402), (0.712, 0.801, 0.83))


def record(number, seconds=1.9, notes=()):
    phases = {"train": seconds - 0.4, "fuse": 0.4}
    return RoundRecord(number, 40, 4, 0.1, 0.1, SCORE, SCORE, phases, "c", notes=notes)


def shown(*records, last_round=None):
    out = io.StringIO()
    progress = Progress(out, last_round)
    for each in records:
        progress.round(each)
    return out.getvalue().splitlines()


def test_plain_output_is_exact():
    out = io.StringIO()
    progress = Progress(out)
    progress.start(START)
    progress.round(record(3))
    progress.round(record(4, notes=("exit 2 was retried",)))
    progress.note("hello")
    progress.round(record(40, notes=("hello", "bye")))  # what was shown is not shown again
    assert out.getvalue() == (
        "900 training, 300 validation, 597 test images, 10 classes; "
        "3 exits of 0.350 0.800 1.200 M operations; cpu, fp32\n"
        "note: on the CPU\n"
        "round 3/40  1.9 s  loss 1.234  val 71.2 80.1 83.0 (avg 78.1) %  eta 0:01:10\n"
        "round 4/40  1.9 s  loss 1.234  val 71.2 80.1 83.0 (avg 78.1) %  eta 0:01:08\n"
        "note: exit 2 was retried\n"
        "note: hello\n"
        "round 40/40  1.9 s  loss 1.234  val 71.2 80.1 83.0 (avg 78.1) %\n"
        "note: bye\n"
    )


def test_what_a_round_lacks_is_left_out():
    nothing = ExitScore((math.nan,) * 3, (math.nan,) * 3)
    skipped = replace(record(40), train=nothing, skipped=True)
    assert shown(replace(record(40), val=None), skipped, replace(skipped, val=None)) == [
        "round 40/40  1.9 s  loss 1.234  train 71.2 80.1 83.0 (avg 78.1) %",
        "round 40/40  1.9 s  skipped  val 71.2 80.1 83.0 (avg 78.1) %",
        "round 40/40  1.9 s  skipped",
    ]


def test_the_estimate_is_a_median_and_ends_where_the_run_will_stop():
    assert shown(record(28, 1.0), record(29, 1.0), record(30, 500.0))[-1].endswith("eta 0:00:10")
    lines = shown(record(3, 10.0), record(5, 10.0), last_round=5)
    assert [line.partition("%")[2] for line in lines] == ["  eta 0:00:20", ""]


@pytest.fixture(params=["closed", "reader gone", "ascii"])
def trouble(request):
    """A stream that can't be written to, or not everything."""
    if request.param == "reader gone":
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as stream:
            yield stream
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())  # so that closing can flush what is left
            os.close(null)
        return
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    if request.param == "closed":
        stream.close()
    yield stream


def test_trouble_with_the_stream_does_not_end_a_run(trouble):
    progress = Progress(trouble)
    progress.start(START)
    progress.note("Δ")
    progress.round(record(3))
    print_table(to_rich(TABLE), trouble)
    if isinstance(trouble, io.TextIOWrapper) and trouble.encoding == "ascii" and not trouble.closed:
        assert b"note: on the CPU\nround 3/40 " in trouble.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_table_in_a_file_is_not_squeezed():
    out = io.StringIO()
    print_table(to_rich(TABLE), out)
    assert "a long title 4 test accuracy (%)" in out.getvalue()
