"""A trained network as a folder to hand on: its two files, a card, figures, and each exit as a program.

The folder is loaded by ``AdaptiveClassifier.load``, and can be pushed to the Hugging Face Hub as it is.
"""

import copy
import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from raygf.errors import ConfigError, StorageError, one_line
from raygf.evaluation.loading import LoadedRun, model_files
from raygf.serving.adaptive import AdaptiveClassifier, stages_and_heads
from raygf.storage.checkpoint import MODEL

Segments = Literal["none", "pt2", "onnx"]


def export_model(run: LoadedRun, folder: str | Path, segments: Segments = "none") -> list[Path]:
    """Write the network of ``run`` to ``folder``: weights, description, card, figures; returns their paths.

    Args:
        segments: also every exit as a program of its own, see ``export_segments``.
    """
    from raygf.evaluation.report import write_files  # with matplotlib, which few need
    from raygf.serving.card import card_files

    classifier = AdaptiveClassifier.from_run(run)
    files = model_files(run, classifier.table)
    paths = write_files(Path(folder), {**files, **card_files(run, classifier)})
    if segments != "none":
        paths += export_segments(classifier, folder, segments, files[MODEL].decode())
    return paths


class Segment(nn.Module):
    """One stage and its head."""

    def __init__(self, stage: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stage, self.head = stage, head

    def forward(self, state: Any) -> tuple[Tensor, Any]:
        """From the state before (images (B, C, H, W) at first) to logits (B, classes) and the state after."""
        after = self.stage(state)
        return self.head(after), after


def export_segments(
    classifier: AdaptiveClassifier,
    folder: str | Path,
    kind: Literal["pt2", "onnx"] = "pt2",
    about: str = "{}",
) -> list[Path]:
    """Write ``segment-1.pt2``, ``segment-2.pt2`` … to ``folder``, shallow to deep; returns their paths.

    Each program maps a state to ``(logits, next state)``: ``torch.export.load(path).module()(state)``; as
    ONNX its inputs are the tensors of the state, its outputs the logits and the tensors of the next. The
    first one's state are the images (B, C, H, W), float32, normalised; there may be any number of them. The
    programs run on the classifier's device; its network is left as it was.

    Args:
        about: The text of ``model.json``, which every program holds: ``extra_files``, in ONNX a property.

    Raises:
        ConfigError: the network can't be exported, or a package is missing.
        StorageError: the folder can't be written.
    """
    if kind == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise ConfigError("segments = 'onnx': needs pip install onnx onnxscript")
    stages, heads = stages_and_heads(classifier.network)
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"can't write segments to {place}: {error}") from None
    paths: list[Path] = []
    state: Any = classifier.task.input.blank(2, classifier.compute.device)
    for number, (stage, head) in enumerate(zip(stages, heads, strict=True), start=1):
        # A copy, because the parameters may be views of one vector, all of which would be stored with each.
        segment = copy.deepcopy(Segment(stage, head)).eval().requires_grad_(False)
        paths.append(place / f"segment-{number}.{kind}")
        state = _export(segment, state, number, paths[-1], about)
    return paths


def _export(segment: Segment, state: Any, number: int, path: Path, about: str) -> Any:
    """Write the program of ``segment``, with ``about`` inside, to ``path``; returns the state after it."""
    batch = torch.export.Dim("batch", min=1)
    shapes = pytree.tree_map(lambda part: {0: batch}, state)
    try:
        with torch.no_grad():
            _, after = segment(state)
            program = torch.export.export(segment, (state,), dynamic_shapes=(shapes,))
            if path.suffix == ".onnx":
                _save_onnx(program, path, about)
            else:
                torch.export.save(program, path, extra_files={MODEL: about})
    except OSError as error:
        raise StorageError(f"can't write {path}: {error}") from None
    except Exception as error:  # torch.export may raise anything for what it can't follow
        raise ConfigError(f"segment {number} can't be exported: {one_line(error)}") from error
    return after


def _save_onnx(program: torch.export.ExportedProgram, path: Path, about: str) -> None:
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    assert converted is not None
    converted.model.metadata_props[MODEL] = about
    converted.save(path, external_data=False)
