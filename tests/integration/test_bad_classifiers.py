"""Saved classifiers that are damaged or of something else, and images that are not theirs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_things import Bench, bloated, cut, damage, flip, other_exits, other_format, pickled, replaced

from raygf.cli import parse
from raygf.errors import CheckpointError, UserError
from raygf.evaluation.loading import load_run
from raygf.rounds.driver import Driver
from raygf.serving.adaptive import AdaptiveClassifier
from raygf.serving.files import load_classifier, save_classifier
from raygf.training.exit_trainer import LocalExecutor

FLAGS = (
    *("--rounds", "1", "--data.train-limit", "16", "--data.val", "20", "--model.msdnet.exits", "2"),
    *("--model.msdnet.base", "1", "--model.msdnet.step", "1", "--model.msdnet.channels", "4"),
)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved classifier of two exits."""
    folder = tmp_path_factory.mktemp("classifier")
    _, config = parse("", "digits", [*FLAGS, "--storage.path", str(folder), "--storage.name", "one"])
    driver = Driver(config, lambda run, dataset, exits: LocalExecutor(run, dataset))
    driver.prepare()
    (record,) = driver.rounds("")
    driver.close()
    run = load_run(record.checkpoint)
    save_classifier(run, AdaptiveClassifier.from_run(run), folder)
    shutil.rmtree(folder / "one")
    return folder


CLASSIFIERS = [
    ("network truncated", "network.npz", cut(0.5), "network.npz: not a whole checkpoint"),
    ("network flipped", "network.npz", flip(400_000), "network.npz: not a whole checkpoint"),
    ("network empty", "network.npz", replaced(b""), "network.npz: not a whole checkpoint"),
    ("network compressed", "network.npz", bloated, "network.npz: not a whole checkpoint"),
    ("network of another format", "network.npz", other_format, "has format 2, this version reads format 1"),
    ("thresholds truncated", "thresholds.json", cut(0.5), "thresholds.json: can't be read"),
    (
        "thresholds of text",
        "thresholds.json",
        replaced(b'{"a": 1}'),
        "thresholds.json: not a table of thresholds",
    ),
    ("thresholds no text", "thresholds.json", replaced(b"\xff\xfe"), "thresholds.json: can't be read"),
    (
        "thresholds for other exits",
        "thresholds.json",
        other_exits,
        "thresholds.json: thresholds for 3 exits, but the network has 2",
    ),
]


@pytest.mark.parametrize(
    ("name", "changes", "change", "says"), CLASSIFIERS, ids=[row[0] for row in CLASSIFIERS]
)
def test_a_saved_classifier(
    name: str, changes: str, change: Callable[[bytes], bytes], says: str, classifier: Path, tmp_path: Path
) -> None:
    shutil.copytree(classifier, tmp_path / "saved")
    damage(f"saved/{changes}", change)(Bench(tmp_path, tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_classifier(str(tmp_path / "saved/network.npz"), str(tmp_path / "saved/thresholds.json"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["network.npz", "thresholds.json"])
def test_a_pickle_for_a_saved_classifier(name: str, classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "saved")
    bench = Bench(tmp_path, tmp_path)
    pickled(f"saved/{name}")(bench)
    with pytest.raises(CheckpointError, match=name):
        load_classifier(str(tmp_path / "saved/network.npz"), str(tmp_path / "saved/thresholds.json"))
    assert not bench.mark.exists()


@pytest.mark.parametrize(
    ("images", "budget", "says"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), 1e9, "images must be uint8 (N, 1, 8, 8)"),
        (np.zeros((2, 1, 8, 8), np.float32), 1e9, "not float32"),
        (np.zeros((1, 8, 8), np.uint8), 1e9, "images must be uint8 (N, 1, 8, 8)"),
        (np.zeros((2, 1, 8, 8), np.uint8), 1.0, "budget = 1.0: must be at least"),
        (np.zeros((2, 1, 8, 8), np.uint8), float("nan"), "budget = nan: must be a finite number"),
    ],
    ids=["colour", "floats", "one image", "small budget", "NaN budget"],
)
def test_images_and_budgets(images: Any, budget: float, says: str, classifier: Path) -> None:
    loaded = load_classifier(str(classifier / "network.npz"), str(classifier / "thresholds.json"))
    with pytest.raises(UserError) as caught:
        loaded.predict(images, budget=budget)
    assert says in str(caught.value) and "\n" not in str(caught.value)
