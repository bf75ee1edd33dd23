"""Weights from a local file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from attached_networks import SPEC, Blocks

from raygf.errors import ConfigError
from raygf.models.attach import attach_exits


class Unsafe:
    """Would be run by unpickling."""

    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def save(content: Any, folder: Path) -> str:
    path = folder / "weights.pt"
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("wrap", [dict, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
def test_weights_are_loaded(tmp_path: Path, wrap: Any) -> None:
    source = Blocks()
    path = save(wrap(source.state_dict()), tmp_path)
    attached = attach_exits(Blocks(), SPEC, ["blocks.1"], weights=path).eval()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(attached(images)[-1], source.eval()(images), rtol=0, atol=0)


def test_a_classifier_for_other_classes_is_drawn_anew(tmp_path: Path) -> None:
    source, network = Blocks(classes=9), Blocks()
    drawn = network.classifier.weight.detach().clone()
    attach_exits(network, SPEC, ["blocks.1"], weights=save(source.state_dict(), tmp_path))
    assert torch.equal(network.classifier.weight, drawn)
    assert torch.equal(network.blocks[3].conv.weight, source.blocks[3].conv.weight)


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in Blocks().state_dict().items() if key != name}


def changed(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {**Blocks().state_dict(), name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (without("stem.bias"), "do not fit Blocks: 1 tensors (stem.bias …) missing, none unknown"),
        (changed("more", 1), "do not fit Blocks: none missing, 1 tensors (more …) unknown"),
        (
            changed("stem.weight", 6, 3, 5, 5),
            "do not fit Blocks: stem.weight is (6, 3, 5, 5), not (6, 3, 3, 3)",
        ),
        (changed("classifier.weight", 9, 7), "do not fit Blocks: classifier.weight is (9, 7), not (4, 6)"),
        ([1, 2], "must hold a state dict: names and tensors"),
        ({"stem": "text"}, "must hold a state dict: names and tensors"),
        (Unsafe(), "can't be read: UnpicklingError: "),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, content: Any, expected: str) -> None:
    path = save(content, tmp_path)
    with pytest.raises(ConfigError) as caught:
        attach_exits(Blocks(), SPEC, ["blocks.1"], weights=path)
    message = str(caught.value)
    assert message.startswith(f"weights = {path!r}: {expected}")
    assert "\n" not in message


def test_nothing_in_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        attach_exits(Blocks(), SPEC, ["blocks.1"], weights=save(Unsafe(), tmp_path))
    assert "unpickled" not in capsys.readouterr().out


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no weights")
    for path, cause in (
        (str(tmp_path / "absent.pt"), "FileNotFoundError"),
        (str(damaged), "UnpicklingError"),
    ):
        with pytest.raises(ConfigError) as caught:
            attach_exits(Blocks(), SPEC, ["blocks.1"], weights=path)
        message = str(caught.value)
        assert message.startswith(f"weights = {path!r}: can't be read: {cause}: ") and "\n" not in message
