"""A classifier in files, and a network exported exit by exit."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from attached_networks import Branches
from bad_things import Bench, bloated, cut, flip, other_format, pickled, replaced
from tiny_network import CPU, SPEC, bind, dataset, run_config, seeded
from torch import nn

from raygf.config.fields import to_dict
from raygf.config.run import ComputeConfig, MSDNetConfig
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.errors import CheckpointError, ConfigError, StorageError
from raygf.evaluation.loading import LoadedRun
from raygf.models.msdnet import MSDNet
from raygf.models.multi_exit import MultiExitNetwork
from raygf.serving.adaptive import AdaptiveClassifier, ImageTask
from raygf.serving.files import export_segments, load_classifier, save_classifier
from raygf.storage.checkpoint import Checkpoint, load_checkpoint, write_archive
from raygf.training.network import BoundNetwork


@pytest.fixture(scope="module")
def run():
    bound, data, config = bind(), dataset(val=30), run_config()
    meta = {"config": to_dict(config), "tensors": list(bound.space.names), "run_id": "x"}
    method = {"eta": np.zeros((3, 15), np.float32)}
    checkpoint = Checkpoint(4, bound.state(), method, meta)
    return LoadedRun(config, data, bound, data.open(bound.compute, 4, 5), checkpoint)


@pytest.fixture(scope="module")
def classifier(run):
    return AdaptiveClassifier.from_run(run)


@pytest.fixture
def saved(run, classifier, tmp_path):
    network, thresholds = save_classifier(run, classifier, tmp_path)
    return str(network), str(thresholds)


def test_the_same_answers_with_thresholds_or_without(run, classifier, saved, tmp_path):
    loaded = load_classifier(*saved)
    budget = float(np.median(classifier.table.operations))
    one, two = (c.predict(run.dataset.test.images, budget=budget) for c in (classifier, loaded))
    for name in ("label", "probability", "exit", "operations"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    for name in ("task", "operations", "compute"):
        assert getattr(loaded, name) == getattr(classifier, name)
    checkpoint = load_checkpoint(saved[0])
    assert checkpoint.method == {}  # it is for training alone
    assert checkpoint.round == 4 and checkpoint.meta["run_id"] == "x"
    bound = run.bound.network
    assert load_classifier(*map(str, save_classifier(run, bare(bound), tmp_path))).table is None


def test_a_device_that_is_not_here(run, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = replace(run.config, compute=ComputeConfig("cuda", "fp32", "contiguous"))
    meta = {**run.checkpoint.meta, "config": to_dict(config)}
    trained = replace(run, checkpoint=replace(run.checkpoint, meta=meta))
    loaded = load_classifier(*map(str, save_classifier(trained, classifier, tmp_path)))
    assert loaded.compute.device == "cpu" and loaded.compute.precision == "fp32"


NETWORK, THRESHOLDS = 0, 1


def other_exits(content):
    """Thresholds for an exit more than there are."""
    rows = json.loads(content)
    return json.dumps([{**row, "thresholds": [*row["thresholds"], 0.5]} for row in rows]).encode()


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (NETWORK, cut(0.5), "network.npz: not a whole checkpoint"),
        (NETWORK, flip(b"vector.npy"), "network.npz: not a whole checkpoint"),
        (NETWORK, replaced(b""), "network.npz: not a whole checkpoint"),
        (NETWORK, bloated, "network.npz: not a whole checkpoint"),
        (NETWORK, other_format, "network.npz: has format 2, this version reads format 1"),
        (THRESHOLDS, replaced(b""), "thresholds.json: can't be read"),
        (THRESHOLDS, cut(0.5), "thresholds.json: can't be read"),
        (THRESHOLDS, replaced(b"\xff\xfe"), "thresholds.json: can't be read"),
        (THRESHOLDS, replaced(b"3"), "thresholds.json: not a table of thresholds"),
        (THRESHOLDS, replaced(b"[]"), "thresholds.json: not a table of thresholds"),
        (THRESHOLDS, replaced(b'{"a": 1}'), "thresholds.json: not a table of thresholds"),
        (THRESHOLDS, replaced(b'[{"operations": 1}]'), "thresholds.json: not a table of thresholds"),
        (THRESHOLDS, other_exits, "thresholds.json: thresholds for 4 exits, but the network has 3"),
    ],
)
def test_damaged_files_are_refused_in_one_line(saved, file, change, says):
    path = Path(saved[file])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        load_classifier(*saved)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_pickles_other_checkpoints_and_missing_files_are_refused_and_nothing_runs(run, saved, tmp_path):
    bench = Bench(tmp_path, tmp_path)
    pickled("pickle")(bench)
    for other in ("pickle", "no.npz"):
        for paths in ((str(tmp_path / other), saved[1]), (saved[0], str(tmp_path / other))):
            with pytest.raises(CheckpointError, match=other):
                load_classifier(*paths)
    assert not bench.mark.exists()
    with (tmp_path / "round.npz").open("wb") as stream:
        write_archive(stream, run.checkpoint)
    with pytest.raises(CheckpointError, match=r"round\.npz: not the network of a saved classifier"):
        load_classifier(str(tmp_path / "round.npz"), saved[1])


@torch.no_grad()
def assert_equal_to(network, paths, images):
    """The exported segments, run in turn, give the network's logits."""
    state = images
    for path, own in zip(paths, network.eval()(images), strict=True):
        exported, state = torch.export.load(path).module()(state)
        torch.testing.assert_close(exported, own, rtol=1e-4, atol=1e-5)


def bare(network, spec=SPEC):
    """A classifier without thresholds."""
    task = ImageTask(spec, ChannelStatistics((0.5,), (0.25,)), tuple("abcd"[: spec.classes]))
    return AdaptiveClassifier(network, task, range(1, len(network.heads) + 1), None, CPU)


def test_segments_in_turn_give_the_networks_logits(tmp_path):
    bound = bind()
    network, before = bound.network.train(), bound.state().sha256()
    images = torch.randn(9, 1, 4, 4)
    paths = export_segments(bare(network), tmp_path / "segments")
    assert network.training and bound.state().sha256() == before
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert [path.name for path in paths] == ["segment-1.pt2", "segment-2.pt2", "segment-3.pt2"]
    for count in (1, 9):  # other numbers of images than the example's
        assert_equal_to(network, paths, images[:count])


def test_segments_carry_what_else_a_classifier_needs(classifier, tmp_path):
    for path in export_segments(classifier, tmp_path):
        torch.export.load(path, extra_files=(extra := {"classifier.json": ""}))
        assert extra["classifier.json"] == (tmp_path / "classifier.json").read_text()
    assert json.loads(extra["classifier.json"]) == {
        "input": {"channels": 1, "height": 4, "width": 4, "classes": 3},
        "statistics": {"mean": [0.5], "std": [0.25]},
        "class_names": ["a", "b", "c"],
        "operations": list(classifier.operations),
        "thresholds": classifier.table.to_json(),
        "default_budget": classifier.table.default_budget,
    }


def test_states_of_several_scales(tmp_path):
    """MSDNet hands on a list; its weights are views of one vector, which is not stored with each segment."""
    spec = InputSpec(1, 8, 8, 4)
    config = MSDNetConfig(exits=2, base=1, step=1, channels=4, growth=4, factors=(1, 2), head_channels=8)
    bound = BoundNetwork(seeded(lambda: MSDNet(config, spec)), CPU)
    paths = export_segments(bare(bound.network, spec), tmp_path)
    assert_equal_to(bound.network, paths, torch.randn(5, 1, 8, 8))
    programs = [torch.export.load(path) for path in paths]
    stored = sum(p.numel() for program in programs for p in program.state_dict.values())
    whole = sum(p.numel() for p in bound.network.state_dict().values())
    assert stored == whole
    for program in programs:
        for tensor in program.state_dict.values():
            assert tensor.untyped_storage().nbytes() <= 4 * tensor.numel() + 64


def test_networks_and_places_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="can't write segments to"):
        export_segments(bare(bind().network), tmp_path / "file")
    head = nn.Sequential(nn.Flatten(), nn.Linear(SPEC.height * SPEC.width, 3))
    network = MultiExitNetwork([nn.Identity(), Branches()], [head, copy.deepcopy(head)])
    with pytest.raises(ConfigError, match=r"segment 2 can't be exported.*\Z"):  # one line
        export_segments(bare(network), tmp_path)
