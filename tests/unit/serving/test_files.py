"""A network in a folder to hand on, and exported exit by exit."""

import copy
import re

import numpy as np
import pytest
import torch
import yaml
from attached_networks import Branches
from tiny_network import CPU, SPEC, bind, dataset, run_config, seeded
from torch import nn

from raygf.config.fields import to_dict
from raygf.config.run import MSDNetConfig
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.errors import ConfigError, StorageError
from raygf.evaluation.loading import ImageTask, LoadedRun
from raygf.models.msdnet import MSDNet
from raygf.models.multi_exit import MultiExitNetwork
from raygf.serving.adaptive import AdaptiveClassifier
from raygf.serving.card import model_card
from raygf.serving.files import export_model, export_segments
from raygf.storage.checkpoint import Checkpoint
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


def test_an_exported_folder_has_the_model_a_card_of_the_hub_and_programs(run, classifier, tmp_path):
    paths = export_model(run, tmp_path, "pt2")
    names = {str(path.relative_to(tmp_path)) for path in paths}
    assert names == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    segments = {f"segment-{number}.pt2" for number in (1, 2, 3)}
    assert names - segments == {"model.safetensors", "model.json", "README.md", "figures/budgeted.png"}
    for name in segments:
        torch.export.load(tmp_path / name, extra_files=(extra := {"model.json": ""}))
        assert extra["model.json"] == (tmp_path / "model.json").read_text()
    _, header, card = (tmp_path / "README.md").read_text().split("---\n", 2)
    (model,) = yaml.safe_load(header)["model-index"]
    found = [metric["value"] for metric in model["results"][0]["metrics"]]
    assert found == pytest.approx(run.outputs("test").top1, abs=1e-6)
    assert model_card(run, classifier) in card and "| Exit-3 " in card
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card)
    assert set(pictures) == {name for name in names if name.endswith("png")}
    loaded, images = AdaptiveClassifier.load(str(tmp_path)), run.dataset.test.images
    one, two = (c.predict(images, budget=c.default_budget) for c in (classifier, loaded))
    for name in ("label", "probability", "exit", "operations"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.skipif(torch.__version__ < "2.7", reason="the exporter of torch 2.6 can't follow BatchNorm")
@torch.no_grad()
def test_segments_as_onnx_give_the_networks_logits(tmp_path):
    """A state of several tensors becomes several inputs."""
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    spec = InputSpec(1, 8, 8, 4)
    config = MSDNetConfig(exits=2, base=1, step=1, channels=4, growth=4, factors=(1, 2), head_channels=8)
    network = seeded(lambda: MSDNet(config, spec)).eval()
    state = [torch.randn(5, 1, 8, 8)]
    own = network(state[0])
    for path, wanted in zip(
        export_segments(bare(network, spec), tmp_path, "onnx", "known"), own, strict=True
    ):
        program = onnx.load(path)
        assert {entry.key: entry.value for entry in program.metadata_props}["model.json"] == "known"
        given = {port.name: part.numpy() for port, part in zip(program.graph.input, state, strict=True)}
        logits, *after = reference.ReferenceEvaluator(program).run(None, given)
        torch.testing.assert_close(torch.tensor(logits), wanted, rtol=1e-4, atol=1e-5)
        state = [torch.tensor(part) for part in after]


def test_onnx_without_its_packages_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript"):
        export_segments(bare(bind().network), tmp_path, "onnx")


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
