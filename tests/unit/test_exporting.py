from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_network import CPU, SPEC, Tied, bind, seeded
from torch import Tensor, nn

from raygf.config.run import MSDNetConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError, StorageError
from raygf.models.msdnet import MSDNet
from raygf.models.multi_exit import MultiExitNetwork
from raygf.serving.files import export_segments
from raygf.training.network import BoundNetwork


def follow(paths: list[Path], images: Tensor) -> list[Tensor]:
    """The logits of the exported segments, run in turn."""
    logits, state = [], images
    for path in paths:
        answer, state = torch.export.load(path).module()(state)
        logits.append(answer)
    return logits


@torch.no_grad()
def assert_equal_to(network: nn.Module, paths: list[Path], images: Tensor) -> None:
    network.eval()
    for exported, own in zip(follow(paths, images), network(images), strict=True):
        torch.testing.assert_close(exported, own, rtol=1e-4, atol=1e-5)


def test_segments_in_turn_give_the_networks_logits(tmp_path):
    network = bind().network
    images = torch.randn(9, 1, 4, 4)
    paths = export_segments(network, images[:2], tmp_path / "segments")
    assert [path.name for path in paths] == ["segment-1.pt2", "segment-2.pt2", "segment-3.pt2"]
    for count in (1, 9):  # other numbers of images than the example's
        assert_equal_to(network, paths, images[:count])


def test_states_of_several_scales(tmp_path):
    """MSDNet hands on a list; its weights are views of one vector, which is not stored with each segment."""
    spec = InputSpec(1, 8, 8, 4)
    config = MSDNetConfig(exits=2, base=1, step=1, channels=4, growth=4, factors=(1, 2), head_channels=8)
    bound = BoundNetwork(seeded(lambda: MSDNet(config, spec)), CPU)
    paths = export_segments(bound.network, torch.randn(2, 1, 8, 8), tmp_path)
    assert_equal_to(bound.network, paths, torch.randn(5, 1, 8, 8))
    programs = [torch.export.load(path) for path in paths]
    stored = sum(p.numel() for program in programs for p in program.state_dict.values())
    whole = sum(p.numel() for p in bound.network.state_dict().values())
    assert stored == whole
    for program in programs:
        for tensor in program.state_dict.values():
            assert tensor.untyped_storage().nbytes() <= 4 * tensor.numel() + 64


def test_the_network_is_left_as_it_was(tmp_path):
    bound = bind()
    bound.network.train()
    before = bound.state().sha256()
    export_segments(bound.network, torch.randn(2, 1, 4, 4), tmp_path)
    assert bound.network.training and bound.state().sha256() == before
    assert all(parameter.requires_grad for parameter in bound.network.parameters())


def test_networks_without_stages(tmp_path):
    with pytest.raises(ConfigError, match="Tied can't stop early"):
        export_segments(seeded(Tied), torch.randn(2, 1, 4, 4), tmp_path)


def test_one_image_is_no_example(tmp_path):
    with pytest.raises(ConfigError, match="at least 2 images"):
        export_segments(bind().network, torch.randn(1, 1, 4, 4), tmp_path)


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="can't write segments to"):
        export_segments(bind().network, torch.randn(2, 1, 4, 4), tmp_path / "file")


class Branches(nn.Module):
    """Control flow that depends on the data: no graph can hold it."""

    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


def test_what_can_not_be_exported_is_named(tmp_path):
    head = nn.Sequential(nn.Flatten(), nn.Linear(SPEC.height * SPEC.width, 3))
    network = MultiExitNetwork(
        [nn.Identity(), Branches()], [head, nn.Sequential(nn.Flatten(), nn.Linear(16, 3))]
    )
    with pytest.raises(ConfigError, match="segment 2 can't be exported") as caught:
        export_segments(network, torch.randn(2, 1, 4, 4), tmp_path)
    assert "\n" not in str(caught.value)
