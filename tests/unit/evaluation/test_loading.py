"""A past run is back as it was, and what does not fit is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from past_runs import train
from tiny_network import Tied, run_config

from raygf.config.fields import from_dict
from raygf.config.run import ComputeConfig, DataConfig, RunConfig
from raygf.errors import DataError, UserError
from raygf.evaluation.loading import load_run
from raygf.storage.checkpoint import find_checkpoint, load_checkpoint, write_archive

DIGITS = DataConfig(source="digits", val=30, train_limit=24, pad=0, flip=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("runs"))
    return train(run_config(path=path, rounds=1, method="sgd", data=DIGITS), run_id="the-run")


@pytest.fixture
def rewritten(trained, tmp_path):
    """Writes the checkpoint again with entries of its text changed."""

    def write(**changes):
        checkpoint = load_checkpoint(trained.checkpoint)
        meta = {name: value for name, value in {**checkpoint.meta, **changes}.items() if value is not None}
        path = tmp_path / "changed.npz"
        with path.open("wb") as stream:
            write_archive(stream, replace(checkpoint, meta=meta))
        return str(path)

    return write


def config_of(path):
    found: dict[str, Any] = load_checkpoint(path).meta["config"]
    return found


def test_latency_grows_from_exit_to_exit(trained):
    run = load_run(trained.checkpoint)
    first, *later = run.latency(3)
    assert len(later) == 2 and 0 < first < later[0] < later[1] < 60_000
    run.bound.network = Tied()
    assert run.latency(3) == ()


def test_the_run_is_back(trained):
    path = trained.checkpoint
    run = load_run(path)
    assert run.config == run_config(path=str(Path(path).parents[1]), rounds=1, method="sgd", data=DIGITS)
    otherwise = load_run(path, replace(run.config, compute=ComputeConfig("cpu", "bf16", "channels_last")))
    assert otherwise.bound.compute.precision == "bf16"
    assert run.checkpoint.round == 1 and run.checkpoint.meta["run_id"] == "the-run"
    assert run.bound.state().sha256() == run.checkpoint.network.sha256()
    assert not run.bound.network.training
    assert run.outputs("test").top1 == pytest.approx(trained.test.accuracy)
    assert [run.dataset.count(split) for split in ("train", "val", "test")] == [24, 30, 497]
    assert len(run.outputs("val").labels) == 30
    assert [cost.parameters for cost in run.costs()][-1] == run.bound.space.size


def test_no_validation_images(tmp_path):
    data = replace(DIGITS, val=0)
    path = train(run_config(path=str(tmp_path), rounds=1, method="sgd", data=data)).checkpoint
    with pytest.raises(DataError, match=r"digits has no val images to evaluate \(data\.val = 0"):
        load_run(path).outputs("val")


def test_missing_data(trained, rewritten, tmp_path):
    config = config_of(trained.checkpoint)
    config["data"] |= {"source": "cifar10", "path": "gone"}
    path = rewritten(config=config)
    elsewhere = from_dict(RunConfig, config | {"data": {"source": "cifar10", "path": str(tmp_path)}})
    for run, where in ((None, "gone"), (elsewhere, str(tmp_path))):
        with pytest.raises(DataError, match=where) as caught:
            load_run(path, run)
        assert isinstance(caught.value, UserError) and caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


def test_pretrained_weights_need_not_be_here(trained, rewritten):
    config = config_of(trained.checkpoint)
    config["model"]["weights"] = "/gone/weights.pt"
    assert load_run(rewritten(config=config)).config.model.weights == "/gone/weights.pt"


def test_a_folder_stands_for_its_newest_checkpoint(trained, tmp_path):
    checkpoint = trained.checkpoint
    folder = Path(checkpoint).parent
    assert find_checkpoint(f"file://{folder}") == (f"file://{checkpoint}", ())
    for path in (checkpoint, str(folder), f"{folder}/"):
        assert find_checkpoint(path) == (checkpoint, ())
    (tmp_path / "round-000001.npz").write_bytes(Path(checkpoint).read_bytes())
    (tmp_path / "round-000002.npz").write_bytes(b"cut short")
    found, notes = find_checkpoint(str(tmp_path))
    assert found == f"{tmp_path}/round-000001.npz"
    assert len(notes) == 1 and "not a whole checkpoint" in notes[0]
