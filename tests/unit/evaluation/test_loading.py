"""A past run is back as it was; its network in two files; what does not fit is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_things import Bench, cut, pickled, replaced
from past_runs import train
from safetensors.torch import load_file, save
from tiny_network import Tied, bind, dataset, run_config, seeded, three_exits

from raygf.config.fields import from_dict
from raygf.config.run import ComputeConfig, DataConfig, RunConfig
from raygf.errors import CheckpointError, DataError, UserError
from raygf.evaluation.loading import LoadedRun, load_run, model_files
from raygf.serving.adaptive import AdaptiveClassifier
from raygf.storage.checkpoint import (
    MODEL,
    WEIGHTS,
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    write_archive,
)

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


IMAGES = torch.randn(5, 1, 4, 4)


def loaded_run(build=three_exits, **changes):
    bound, data = bind(build), dataset(val=30)
    config = run_config(build.__name__, **changes)
    return LoadedRun(
        config, data, bound, data.open(bound.compute, 4, 5), Checkpoint(4, bound.state(), {}, {})
    )


def save_to(folder, run, table=None):
    for name, content in model_files(run, table).items():
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.fixture(scope="module")
def run():
    return loaded_run()


@pytest.fixture
def saved(run, tmp_path):
    return save_to(tmp_path, run, run.thresholds("patience"))


@torch.no_grad()
def test_another_program_loads_the_weights_by_their_names_in_pytorch(run, saved):
    network = seeded(three_exits, seed=1)
    network.load_state_dict(load_file(Path(saved, WEIGHTS)))
    for one, two in zip(network.eval()(IMAGES), run.bound.network.eval()(IMAGES), strict=True):
        assert torch.equal(one, two)
    known = json.loads(Path(saved, MODEL).read_text())
    assert (known["network"], known["exits"]) == ("tiny_network:three_exits", 3)
    assert (known["class_names"], known["rounds"]) == (["a", "b", "c"], 4)
    assert known["operations"] == [cost.operations for cost in run.costs()]
    assert known["statistics"] == {"mean": [0.5], "std": [0.25]}
    assert known["default_budget"] in [row["operations"] for row in known["thresholds"]]
    table = AdaptiveClassifier.load(saved).table
    assert table.policy == known["policy"] == "patience" and len(table.temperatures) == 3
    assert (known["config"]["data"]["path"], known["config"]["model"]["weights"]) == ("", "")
    assert known["weights_sha256"] == run.checkpoint.network.sha256()


def test_the_folder_alone_is_a_run_that_can_be_evaluated(run, saved, monkeypatch):
    file, notes = find_checkpoint(saved)
    assert (file, notes) == (f"{saved}/{WEIGHTS}", ())
    monkeypatch.setattr("raygf.evaluation.loading.load_data", lambda config, seed: run.dataset)
    found = load_run(file)
    assert found.checkpoint.network.sha256() == run.checkpoint.network.sha256()
    assert (found.config.method, found.config.storage.name) == (run.config.method, "run")
    assert found.outputs("test").top1 == run.outputs("test").top1


@torch.no_grad()
def test_what_is_loaded_answers_to_the_bit(run, tmp_path):
    """A network that is given is not built anew."""
    folder = save_to(tmp_path, run)
    found, given = AdaptiveClassifier.load(folder), seeded(three_exits, seed=3)
    assert found.table is None
    assert AdaptiveClassifier.load(f"file://{folder}", network=given).network is given
    for network in (found.network, given):
        for one, two in zip(network(IMAGES), run.bound.network.eval()(IMAGES), strict=True):
            assert torch.equal(one, two)


@torch.no_grad()
def test_tied_tensors_are_stored_once(tmp_path):
    run, network = loaded_run(Tied), seeded(Tied, seed=3)
    network.load_state_dict(load_file(Path(save_to(tmp_path, run), WEIGHTS)), strict=False)
    for one, two in zip(network.eval()(IMAGES), run.bound.network.eval()(IMAGES), strict=True):
        assert torch.equal(one, two)


def test_a_device_that_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = loaded_run()
    config = replace(run.config, compute=ComputeConfig("cuda", "fp32", "contiguous"))
    loaded = AdaptiveClassifier.load(save_to(tmp_path, replace(run, config=config)))
    assert (loaded.compute.device, loaded.compute.precision) == ("cpu", "fp32")


def changed(**values):
    """``model.json`` with other values; None: without them."""

    def change(content):
        known = {**json.loads(content), **values}
        return json.dumps({name: value for name, value in known.items() if value is not None}).encode()

    return change


def other_weights(**tensors):
    """Tensors that replace those in the file; None: that are left out."""

    def change(content):
        from safetensors.torch import load

        found = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        return save({n: t.contiguous() for n, t in {**load(content), **found}.items() if t is not None})

    return change


WHOLE = "not a whole model of raygf"


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (WEIGHTS, cut(0.5), f"model.safetensors: {WHOLE} (SafetensorError: "),
        (WEIGHTS, other_weights(heads__0__2__weight=None), f"{WHOLE} (KeyError: 'heads.0.2.weight')"),
        (
            WEIGHTS,
            other_weights(heads__0__2__weight=torch.zeros(1)),
            "the checkpoint has 382 parameters (float32), this",
        ),
        (WEIGHTS, other_weights(more=torch.zeros(1)), "buffer more of the checkpoint does not fit"),
        (
            WEIGHTS,
            other_weights(heads__0__2__bias=torch.full((3,), torch.nan)),
            "weights are not finite: heads",
        ),
        (MODEL, cut(0.5), f"model.json: {WHOLE} (JSONDecodeError: "),
        (MODEL, replaced(b"[]"), f"model.json: {WHOLE} (TypeError: "),
        (MODEL, changed(format=2), "model.json: has format 2, this version reads format 1"),
        (MODEL, changed(config={"nme": 1}), "can't read its configuration: nme: no such field"),
        (MODEL, changed(statistics=None), "model.json: KeyError: 'statistics'"),
        (MODEL, changed(thresholds=3), "model.json: TypeError: 'int' object is not iterable"),
        (MODEL, changed(operations=[1, 2]), "model.json: ValueError: thresholds are not those of 2 exits"),
    ],
)
def test_damaged_files_are_refused_in_one_line(saved, file, change, says):
    path = Path(saved, file)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        AdaptiveClassifier.load(saved)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_pickles_and_missing_files_are_refused_and_nothing_runs(saved, tmp_path):
    bench = Bench(tmp_path, tmp_path)
    pickled("pickle")(bench)
    for name in (WEIGHTS, MODEL):
        whole = Path(saved, name).read_bytes()
        Path(saved, name).write_bytes((tmp_path / "pickle").read_bytes())
        with pytest.raises(CheckpointError, match=name):
            AdaptiveClassifier.load(saved)
        Path(saved, name).write_bytes(whole)
    assert not bench.mark.exists()
    Path(saved, MODEL).unlink()
    with pytest.raises(CheckpointError, match=r"model\.json.*No such file"):
        AdaptiveClassifier.load(saved)
