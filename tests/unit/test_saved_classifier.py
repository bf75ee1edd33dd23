from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import bind, dataset, run_config

from raygf.config.fields import to_dict
from raygf.config.run import ComputeConfig
from raygf.errors import CheckpointError
from raygf.evaluation.loading import LoadedRun
from raygf.serving.adaptive import AdaptiveClassifier
from raygf.serving.files import load_classifier, save_classifier
from raygf.storage.checkpoint import Checkpoint, load_checkpoint, write_archive


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    bound, data, config = bind(), dataset(val=30), run_config()
    meta = {"config": to_dict(config), "tensors": list(bound.space.names), "run_id": "x"}
    method = {"eta": np.zeros((3, 15), np.float32)}
    checkpoint = Checkpoint(4, bound.state(), method, meta)
    return LoadedRun(config, data, bound, data.open(bound.compute, 4, 5), checkpoint)


@pytest.fixture(scope="module")
def classifier(run: LoadedRun) -> AdaptiveClassifier:
    return AdaptiveClassifier.from_run(run)


@pytest.fixture
def saved(run: LoadedRun, classifier: AdaptiveClassifier, tmp_path: Path) -> tuple[str, str]:
    network, thresholds = save_classifier(run, classifier, tmp_path)
    return str(network), str(thresholds)


def test_the_same_answers(run, classifier, saved):
    copy = load_classifier(*saved)
    budget = float(np.median(classifier.table.operations))
    one, two = (c.predict(run.dataset.test.images, budget=budget) for c in (classifier, copy))
    for name in ("label", "probability", "exit", "operations"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert copy.task == classifier.task
    assert copy.operations == classifier.operations
    assert copy.compute == classifier.compute


def test_the_method_stays_behind(saved):
    checkpoint = load_checkpoint(saved[0])
    assert checkpoint.method == {}
    assert checkpoint.round == 4 and checkpoint.meta["run_id"] == "x"


def test_without_thresholds_by_budget(run, classifier, tmp_path):
    bare = AdaptiveClassifier(
        run.bound.network, classifier.task, classifier.operations, None, classifier.compute
    )
    copy = load_classifier(*map(str, save_classifier(run, bare, tmp_path)))
    assert copy.table is None


def test_a_device_that_is_not_here(run, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = replace(run.config, compute=ComputeConfig("cuda", "fp32", "contiguous"))
    meta = {**run.checkpoint.meta, "config": to_dict(config)}
    trained = replace(run, checkpoint=replace(run.checkpoint, meta=meta))
    copy = load_classifier(*map(str, save_classifier(trained, classifier, tmp_path)))
    assert copy.compute.device == "cpu" and copy.compute.precision == "fp32"


def test_a_training_checkpoint_is_no_classifier(run, saved, tmp_path):
    path = tmp_path / "round.npz"
    with path.open("wb") as stream:
        write_archive(stream, run.checkpoint)
    with pytest.raises(CheckpointError, match=r"round\.npz: not the network of a saved classifier"):
        load_classifier(str(path), saved[1])


@pytest.mark.parametrize("text", ["", "[", "3", "[]", '{"a": 1}', '[{"operations": 1}]'])
def test_damaged_thresholds(saved, text):
    Path(saved[1]).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        load_classifier(*saved)
    assert "\n" not in str(caught.value)


def test_missing_files(saved, tmp_path):
    for paths in ((str(tmp_path / "no.npz"), saved[1]), (saved[0], str(tmp_path / "no.json"))):
        with pytest.raises(CheckpointError, match=r"no\."):
            load_classifier(*paths)


def test_thresholds_can_be_read_by_people(saved, classifier):
    rows = json.loads(Path(saved[1]).read_text())
    assert len(rows) == len(classifier.table.operations)
    assert set(rows[0]) == {"operations", "accuracy", "thresholds"}
