from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_network import run_config

from raygf.config.run import ComputeConfig, DataConfig, RunConfig
from raygf.errors import CheckpointError, ConfigError, DataError, UserError
from raygf.evaluation.loading import load_run
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import load_checkpoint, write_archive
from raygf.training.exit_trainer import LocalExecutor

DIGITS = DataConfig(source="digits", val=30, train_limit=24, pad=0, flip=False)


def train(config: RunConfig) -> tuple[str, tuple[float, ...]]:
    """Path of the last checkpoint, and the test accuracies that the run itself reports."""
    driver = Driver(config, lambda run, dataset, exits: LocalExecutor(run, dataset))
    driver.prepare()
    for _ in driver.rounds("the-run"):
        pass
    end = driver.end()
    driver.close()
    return end.checkpoint, end.test.accuracy


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tuple[float, ...]]:
    path = str(tmp_path_factory.mktemp("runs"))
    return train(run_config(path=path, rounds=1, method="sgd", data=DIGITS))


@pytest.fixture
def rewritten(trained: tuple[str, Any], tmp_path: Path) -> Callable[..., str]:
    """Writes the checkpoint again with entries of its text changed."""

    def write(**changes: Any) -> str:
        checkpoint = load_checkpoint(trained[0])
        meta = {name: value for name, value in {**checkpoint.meta, **changes}.items() if value is not None}
        path = tmp_path / "changed.npz"
        with path.open("wb") as stream:
            write_archive(stream, replace(checkpoint, meta=meta))
        return str(path)

    return write


def config_of(path: str) -> dict[str, Any]:
    found: dict[str, Any] = load_checkpoint(path).meta["config"]
    return found


def refused(path: str, **how: Any) -> str:
    """The one line that loading ``path`` ends with."""
    with pytest.raises(CheckpointError) as caught:
        load_run(path, **how)
    line = str(caught.value)
    assert "\n" not in line and path in line
    assert caught.value.exit_code == 2
    return line


def test_the_run_is_back(trained):
    path, accuracy = trained
    run = load_run(path)
    assert run.config == run_config(path=str(Path(path).parents[1]), rounds=1, method="sgd", data=DIGITS)
    assert run.checkpoint.round == 1 and run.checkpoint.meta["run_id"] == "the-run"
    assert run.bound.state().sha256() == run.checkpoint.network.sha256()
    assert not run.bound.network.training
    assert run.outputs("test").top1 == pytest.approx(accuracy)
    assert [run.dataset.count(split) for split in ("train", "val", "test")] == [24, 30, 497]
    assert len(run.outputs("val").labels) == 30
    assert [cost.parameters for cost in run.costs()][-1] == run.bound.space.size


def test_it_may_run_otherwise_than_it_was_trained(trained):
    run = load_run(trained[0], compute=ComputeConfig("cpu", "bf16", "channels_last"))
    assert run.bound.compute.precision == "bf16"


def test_no_validation_images(tmp_path):
    data = replace(DIGITS, val=0)
    path, _ = train(run_config(path=str(tmp_path), rounds=1, method="sgd", data=data))
    with pytest.raises(DataError, match=r"digits has no val images to evaluate \(data\.val = 0"):
        load_run(path).outputs("val")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated(trained, tmp_path, share):
    whole = Path(trained[0]).read_bytes()
    part = tmp_path / "part.npz"
    part.write_bytes(whole[: int(share * len(whole))])
    assert "not a whole checkpoint" in refused(str(part))


def test_missing(tmp_path):
    refused(str(tmp_path / "nothing.npz"))


def test_of_another_network(trained, rewritten):
    config = config_of(trained[0])
    config["model"]["name"] = "tiny_network:one_exit"
    line = refused(rewritten(config=config))
    assert "not those of model.name = 'tiny_network:one_exit' as it is here" in line
    assert "belongs to another network" in line
    # Checkpoints that do not list their tensors are told by their sizes.
    line = refused(rewritten(config=config, tensors=None))
    assert "belongs to another network" in line


def test_of_other_classes(trained, rewritten):
    spec = load_checkpoint(trained[0]).meta["input"]
    line = refused(rewritten(input={**spec, "classes": 7}))
    assert "its network tells 7 classes of 1x8x8 images apart, but the data set digits has 10 classes" in line


def test_of_images_of_another_size(trained, rewritten):
    config = config_of(trained[0])
    config["data"]["image_size"] = 16
    assert "the data set digits has 10 classes of 1x16x16 images" in refused(rewritten(config=config))


def test_of_other_classes_without_a_word_about_it(trained, rewritten, monkeypatch):
    """A checkpoint that does not say what its network takes is still refused, by its sizes."""
    import tiny_network

    monkeypatch.setattr(
        tiny_network, "three_exits", lambda spec: tiny_network._network(3, replace(spec, classes=12))
    )
    with pytest.raises(ConfigError):  # the network itself no longer fits
        load_run(rewritten(input=None))


@pytest.mark.parametrize(
    "config, says",
    [
        (None, "does not say which configuration"),
        ({"data": 3}, "this version can't read its configuration: data = 3"),
        ({"galaxy": 3}, "galaxy: no such field"),
        ({"rounds": -1}, "rounds = -1"),
    ],
    ids=["none", "section", "field", "value"],
)
def test_configurations_that_can_not_be_read(rewritten, config, says):
    assert says in refused(rewritten(config=config))


def test_missing_data(trained, rewritten, tmp_path):
    config = config_of(trained[0])
    config["data"] |= {"source": "cifar10", "path": "gone"}
    path = rewritten(config=config)
    for how, where in (({}, "gone"), ({"data_path": str(tmp_path)}, str(tmp_path))):
        with pytest.raises(DataError, match=where) as caught:
            load_run(path, **how)
        assert isinstance(caught.value, UserError) and caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


def test_pretrained_weights_need_not_be_here(trained, rewritten):
    config = config_of(trained[0])
    config["model"]["weights"] = "/gone/weights.pt"
    assert load_run(rewritten(config=config)).config.model.weights == "/gone/weights.pt"


def test_nothing_is_unpickled(trained):
    with zipfile.ZipFile(trained[0]) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                assert np.lib.format.read_magic(member) == (1, 0) and name.endswith(".npy")
    assert json.dumps(load_checkpoint(trained[0]).meta["input"])
