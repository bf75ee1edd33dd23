"""A short run, evaluated from its checkpoint: weights, importance, and everything together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import run_config
from torch.testing import assert_close

from raygf.config.run import DataConfig, FusionConfig, RunConfig
from raygf.errors import CheckpointError
from raygf.evaluation.importance import importance_of, learned_weights
from raygf.evaluation.loading import load_run
from raygf.evaluation.results import evaluate_run
from raygf.fusion.fuse import fusion_weights
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import Checkpoint, CheckpointStore, find_checkpoint, load_checkpoint
from raygf.training.exit_trainer import LocalExecutor
from raygf.training.network import as_tensor

DIGITS = DataConfig("digits", val=30, train_limit=40, pad=0, flip=False)


def train(config: RunConfig) -> str:
    driver = Driver(config, lambda *args: LocalExecutor(*args[:2]))
    driver.prepare()
    for _ in driver.rounds(""):
        pass
    return driver.end().checkpoint


def config(path: Path, **changes) -> RunConfig:
    return replace(run_config(path=str(path), rounds=2, data=DIGITS), **changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return train(config(tmp_path_factory.mktemp("runs"), fusion=FusionConfig(segments="channel")))


def with_arrays(path: str, folder: Path, arrays) -> str:
    """A copy of a checkpoint with other arrays of its method."""
    known = load_checkpoint(path)
    return CheckpointStore(str(folder), "run", 1).save(
        Checkpoint(known.round, known.network, arrays(known.method), known.meta)
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


def test_weights_are_those_of_the_last_merge(checkpoint):
    run = load_run(checkpoint)
    learned = learned_weights(run)
    eta = as_tensor(run.checkpoint.method["eta_fitted"])
    assert learned.source == "fitted"
    assert_close(learned.alpha, fusion_weights(eta, learned.owned))
    assert not np.allclose(
        learned.alpha, fusion_weights(as_tensor(run.checkpoint.method["eta"]), learned.owned)
    )
    names = run.bound.space.names
    head = names.index("heads.0.2.weight")
    assert learned.per_tensor[0, head] == pytest.approx(1)
    assert np.isnan(learned.per_tensor[1:, head]).all()  # the other exits do not use it


def test_without_fitted_weights_the_average_is_read_and_said(checkpoint, folder):
    path = with_arrays(checkpoint, folder, lambda method: {"eta": method["eta"]})
    run = load_run(path)
    learned = learned_weights(run)
    assert learned.source == "carried"
    assert_close(learned.alpha, fusion_weights(as_tensor(run.checkpoint.method["eta"]), learned.owned))


def test_methods_without_fusion_weights_have_none(checkpoint, folder):
    assert learned_weights(load_run(with_arrays(checkpoint, folder, lambda method: {}))) is None


def test_weights_of_another_size_are_refused(checkpoint, folder):
    path = with_arrays(checkpoint, folder, lambda method: {"eta": method["eta"][:, :3]})
    with pytest.raises(CheckpointError, match=r"fusion weights \(3, 3\) .* another network"):
        learned_weights(load_run(path))


def test_importance_prunes_on_the_test_images_and_puts_everything_back(checkpoint):
    run = load_run(checkpoint)
    before = run.bound.state().sha256()
    learned = learned_weights(run)
    # One channel of the first stage, which all exits share, is made exit 3's; the rest is nobody's.
    alpha = torch.zeros_like(learned.alpha)
    alpha[2, 0] = 0.9
    found = importance_of(run, replace(learned, alpha=alpha))
    assert found.segments == (0, 0, 1) and found.parameters == (0, 0, 9)
    assert found.baseline == pytest.approx(run.outputs("test").top1)
    assert not found.alone[:2].any()
    pruned = load_run(checkpoint)
    pruned.bound.vector[:9] = 0
    expected = 1 - np.array(pruned.outputs("test").top1) / np.array(found.baseline)
    assert found.alone[2] == pytest.approx(expected)
    assert found.in_turn[2] == pytest.approx(expected)
    assert run.bound.state().sha256() == before


def test_everything_measured_on_a_run(checkpoint):
    found = evaluate_run(load_run(checkpoint))
    run = load_run(checkpoint)
    assert (found.round, found.run_id, found.training_passes) == (2, "", 8)
    assert found.top1 == run.outputs("test").top1 and found.top5 == run.outputs("test").top5
    assert [entry["round"] for entry in found.history] == [1, 2]
    assert found.tensors == run.bound.space.names
    assert found.operations == tuple(cost.operations for cost in run.costs())
    assert found.curve.accuracy.shape == (39,)
    assert found.importance.baseline == pytest.approx(found.top1)
    assert evaluate_run(run, with_importance=False).importance is None


def test_joint_training_has_no_importance_and_no_validation_no_curve(tmp_path):
    path = train(config(tmp_path, method="sgd", data=replace(DIGITS, val=0), rounds=1))
    found = evaluate_run(load_run(path))
    assert found.importance is None and found.learned is None and found.curve is None
    assert found.training_passes == 1


@pytest.mark.parametrize(
    ("method", "passes"), [("mine:rule", 2), ("delta-mine:rule", 8), ("delta-mean", 8), ("dfs", 2)]
)
def test_passes_are_those_of_the_kind_of_method(checkpoint, method, passes):
    """A rule of the user's own counts as others do."""
    found = evaluate_run(load_run(checkpoint), with_importance=False)
    assert replace(found, config=replace(found.config, method=method)).training_passes == passes


def test_a_folder_stands_for_its_newest_checkpoint(checkpoint, tmp_path):
    folder = Path(checkpoint).parent
    assert find_checkpoint(checkpoint) == (checkpoint, ())
    assert find_checkpoint(str(folder)) == (checkpoint, ())
    assert find_checkpoint(f"{folder}/") == (checkpoint, ())
    assert find_checkpoint(f"file://{folder}") == (f"file://{checkpoint}", ())
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "round-000001.npz").write_bytes(Path(checkpoint).read_bytes())
    (copy / "round-000002.npz").write_bytes(b"cut short")
    found, notes = find_checkpoint(str(copy))
    assert found == f"{copy}/round-000001.npz"
    assert len(notes) == 1 and "not a whole checkpoint" in notes[0]


@pytest.mark.parametrize("content", [None, b"garbage"])
def test_a_folder_without_a_whole_checkpoint(content, tmp_path):
    if content is not None:
        (tmp_path / "round-000003.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"no checkpoint in it|not a whole checkpoint") as error:
        find_checkpoint(str(tmp_path))
    assert "taking the one before" not in str(error.value)
