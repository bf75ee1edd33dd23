"""A short soak: what a run takes does not grow; and if it did, ``benchmarks/soak.py`` would notice."""

import contextlib
import json
import time

import numpy as np
import pytest
import soak

from raygf.config.run import StorageConfig

ROUNDS, SETTLED = 8, 3


def test_a_few_rounds(cluster, tmp_path):
    """Open files and threads stay as they are but for a connection that Ray may open, the object store is
    given back in the end (in between Ray frees it when it gets round to it)."""
    before = settled_objects()
    curves = soak.soak(soak.tiny_run(ROUNDS, 2, StorageConfig(str(tmp_path), "soak")), 2)
    trainers = [name for name in curves.processes if name not in ("job", *soak.NO_BAR)]
    assert trainers == ["driver", "exit actor 1", "exit actor 2"]
    for name in trainers:
        files, threads = (curves.series(name, what) for what in ("files", "threads"))
        assert len(files) == ROUNDS
        assert files[SETTLED:].max() - files[SETTLED:].min() <= 2 < ROUNDS - SETTLED - 1, name
        assert threads[-1] - threads[SETTLED] <= 2, name  # Ray ends threads, too
    assert settled_objects(at_most=before) <= before
    names = sorted(path.name for path in (tmp_path / "soak").glob("*.npz*"))
    assert names == [f"round-{number:06d}.npz" for number in (ROUNDS, ROUNDS + 1)]


def settled_objects(at_most=None):
    """Objects in the store, when they are so few, or when as many as 1.5 s before.

    Ray frees them together, about once a second.
    """
    store, until = soak.Store(), time.monotonic() + 30
    looks = [store.look()[1]]

    def settled():
        return looks[-1] <= at_most if at_most is not None else looks[-16:] == looks[-1:] * 16

    while not settled() and time.monotonic() < until:
        time.sleep(0.1)
        looks.append(store.look()[1])
    return int(looks[-1])


def curves_of(rounds=200, **growth):
    """Made-up curves of a driver that breathes, and grows by so much a round; Ray's part grows anyway,
    and the history by 1 300 bytes a round."""
    number = np.arange(rounds)
    breath = np.random.default_rng(0).normal(0, 2**17, rounds)
    memory = 2**29 + breath + number * (5000 + 1300 + growth.get("memory", 0))
    files, threads = 51 + number * growth.get("files", 0), 31 + number * growth.get("threads", 0)
    objects = 1 + number % 5 + number * growth.get("objects", 0)
    idle = (2**27 + 5000 * number, np.full(rounds, 40), np.full(rounds, 20))
    processes = {"driver": (memory, files, threads), soak.IDLE: idle}
    return soak.Curves(
        {name: np.stack(looks, axis=1).astype(np.int64) for name, looks in processes.items()},
        np.stack([2_800_000 * objects, objects], axis=1).astype(np.int64),
        1300 * number,
    )


def broken(curves):
    return [f"{row.name}: {row.what}" for row in soak.judge(curves, 50) if not row.holds]


@pytest.mark.parametrize(
    ("growth", "names"),
    [
        ({}, []),
        ({"memory": 2.8 * 2**20}, ["driver: memory"]),  # a delta a round
        ({"memory": 2.8 * 2**20 / 500}, ["driver: memory"]),  # one in 500 rounds
        ({"files": 0.1}, ["driver: files"]),
        ({"threads": 1}, ["driver: threads"]),
        ({"objects": 1}, ["object store: bytes", "object store: objects"]),
        ({"memory": -(2**20), "files": -0.1}, []),
    ],
    ids=lambda value: " ".join(value) or "flat",
)
def test_what_grows_is_noticed(growth, names):
    assert broken(curves_of(**growth)) == names


def test_the_slope_of_a_line_and_of_noise():
    line = soak.Slope.of(3.0 * np.arange(150) + 7)
    assert line.value == pytest.approx(3.0) and line.half == pytest.approx(0.0, abs=1e-9)
    covered = [
        abs(slope.value) <= slope.half
        for slope in (soak.Slope.of(np.random.default_rng(seed).normal(size=150)) for seed in range(200))
    ]
    assert 0.92 < np.mean(covered) < 0.98  # what a 95 % interval is


def test_growth_is_in_the_exit_code_and_the_last_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, "own_cluster", contextlib.nullcontext)
    monkeypatch.setattr(soak, "soak", lambda config, exits: curves_of(files=1.0))
    figure = tmp_path / "figures" / "soak.png"
    assert soak.main(soak.Options(figure=str(figure))) == 1
    shown = capsys.readouterr().out
    assert json.loads(shown.splitlines()[-1])["broken"] == ["driver: files"]
    assert "DOES NOT HOLD" in shown
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_too_few_rounds_for_a_slope():
    with pytest.raises(SystemExit, match="--rounds must be at least --warmup"):
        soak.Options(rounds=60, warmup=50)
