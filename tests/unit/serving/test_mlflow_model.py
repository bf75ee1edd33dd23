"""What MLflow is told of a classifier: its signature, its answers as a table, the code that loads it."""

import ast

import numpy as np
import pytest
from tiny_network import CPU, SPEC, bind

from raygf.data.base import ChannelStatistics
from raygf.evaluation.model_files import ImageTask
from raygf.serving.adaptive import AdaptiveClassifier, Predictions
from raygf.serving.mlflow_model import _DEFINITION, as_frame, copy_code, model_signature


@pytest.fixture
def classifier():
    task = ImageTask(SPEC, ChannelStatistics((0.5,), (0.25,)), ("cat", "dog", "owl"))
    return AdaptiveClassifier(bind().network, task, (10, 20, 30), None, CPU)


def test_classes_are_named_and_exits_counted_from_one(classifier):
    answers = Predictions(
        np.array([2, 0]), np.array([0.75, 0.5], np.float32), np.array([0, 2]), np.array([10, 30])
    )
    frame = as_frame(classifier, answers)
    assert frame.to_dict("list") == {
        "label": ["owl", "cat"], "probability": [0.75, 0.5], "exit": [1, 3], "operations": [10, 30]
    }  # fmt: skip


def test_signature_takes_images_and_a_budget(classifier):
    signature = model_signature(classifier)
    [images] = signature.inputs.inputs
    assert (images.type, images.shape) == (np.dtype(np.uint8), (-1, 1, 4, 4))
    assert signature.outputs.input_names() == ["label", "probability", "exit", "operations"]
    [budget] = signature.params.params
    assert (budget.name, budget.default) == ("budget", 30.0)


def test_definition_that_mlflow_stores_is_there_and_sets_the_model():
    calls = [node for node in ast.walk(ast.parse(_DEFINITION.read_text())) if isinstance(node, ast.Call)]
    assert "set_model(EarlyExitModel())" in [ast.unparse(call) for call in calls]


def test_code_of_ones_own_is_copied_and_packages_are_named(tmp_path, monkeypatch):
    own, code = tmp_path / "own", tmp_path / "code"
    (own / "mine_parts").mkdir(parents=True)
    for name, text in {
        "mine_net.py": "import mine_parts.blocks, not_there_at_all\n\ndef make(spec):\n    import pandas",
        "mine_parts/blocks.py": "from .more import x\nfrom raygf.models.msdnet import MSDNet\nimport PIL, os",
        "mine_parts/more.py": "import mine_net",
        "mine_parts/template.py": "{{ not Python }}",
        "mine_parts/weights.bin": "",
        "other.py": "",
    }.items():
        (own / name).write_text(text)
    monkeypatch.syspath_prepend(own)
    assert copy_code("mine_net:make", code) == {"pandas", "pillow"}
    assert {path.name for path in code.glob("*")} == {"raygf", "mine_net.py", "mine_parts"}
    assert {path.name for path in code.glob("mine*/*")} == {"blocks.py", "more.py", "template.py"}
    assert (code / "raygf" / "serving" / "definition.py").exists()
    assert copy_code("msdnet", tmp_path / "plain") == set()
