"""The classifier as an MLflow model: logged, loaded, and served over HTTP where only its requirements are."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow.exceptions import MlflowException
from packaging.requirements import Requirement
from ray_head import free_ports
from runs import end_processes, wait_for_answer

from raygf.config.fields import to_dict
from raygf.config.run import ModelConfig
from raygf.errors import TrackingError
from raygf.evaluation.loading import LoadedRun, load_run
from raygf.serving.adaptive import AdaptiveClassifier


@dataclass(frozen=True)
class Logged:
    """A logged model, and what it was made of."""

    uri: str
    tracking: str
    run: LoadedRun
    classifier: AdaptiveClassifier

    @property
    def images(self):
        return self.run.dataset.test.images[:40]

    @property
    def stored(self):
        """The model's folder."""
        from mlflow import MlflowClient

        model = MlflowClient(self.tracking).get_logged_model(self.uri.split("/")[-1])
        return Path(model.artifact_location.removeprefix("file://"))


OWN = {
    "own_network": "from own_parts import *\n\ndef make(spec):\n    return MSDNet(SETTINGS, spec)\n",
    "own_parts": "from raygf.config.run import MSDNetConfig\nfrom raygf.models.msdnet import MSDNet\n\n"
    "SETTINGS = MSDNetConfig(exits=3, base=1, step=1, channels=8, factors=(1, 2))\n",
}
"""``tracked_run``'s network as one of the user's own, in files of no package."""


@pytest.fixture(scope="module")
def logged(tracked_run, tmp_path_factory):
    from raygf.serving.mlflow_model import log_model

    run, folder = load_run(tracked_run.result.checkpoint), tmp_path_factory.mktemp("own")
    config = replace(run.config, model=ModelConfig("own_network:make"))
    checkpoint = replace(run.checkpoint, meta={**run.checkpoint.meta, "config": to_dict(config)})
    run = replace(run, config=config, checkpoint=checkpoint)
    for name, text in OWN.items():
        (folder / f"{name}.py").write_text(text)
    classifier = AdaptiveClassifier.from_run(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        uri = log_model(run, classifier, tracked_run.uri, tracked_run.result.run_id)
    return Logged(uri, tracked_run.uri, run, classifier)


@pytest.fixture
def model(logged, monkeypatch):
    import mlflow

    assert not mlflow.is_tracking_uri_set()  # logging has left the process as it was
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow adds the model's code
    mlflow.set_tracking_uri(logged.tracking)
    yield mlflow.pyfunc.load_model(logged.uri)
    mlflow.set_tracking_uri(None)


def middle_budget(classifier):
    return float(np.median(classifier.table.operations))


def expected(logged, count, budget):
    answers = logged.classifier.predict(logged.images[:count], budget=budget)
    return pd.DataFrame(
        {
            "label": [logged.classifier.task.class_names[label] for label in answers.label],
            "probability": answers.probability,
            "exit": answers.exit + 1,
            "operations": answers.operations,
        }
    )


def assert_same(found, wanted):
    # Another process may have another number of threads, and so round otherwise.
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False, rtol=2e-2, atol=2e-2)


def test_loaded_model_answers_as_the_classifier(logged, model):
    """Without a budget as with the default one, where images leave early; other images are refused."""
    budget = middle_budget(logged.classifier)
    found = model.predict(logged.images, params={"budget": budget})
    assert list(found.columns) == ["label", "probability", "exit", "operations"]
    assert_same(found, expected(logged, 40, budget))
    assert found["exit"].min() == 1 and found["exit"].nunique() > 1
    assert found["operations"].mean() < logged.classifier.operations[-1]
    default = logged.classifier.default_budget
    assert_same(model.predict(logged.images), expected(logged, 40, default))
    assert expected(logged, 40, default)["exit"].min() < 3 and default < logged.classifier.operations[-1]
    for other in (np.zeros((2, 1, 9, 9), np.uint8), np.zeros((2, 1, 8, 8))):  # of another size, floats
        with pytest.raises(MlflowException, match="schema"):
            model.predict(other)


def test_data_frames_of_images(logged, model):
    budget = middle_budget(logged.classifier)
    images = logged.images[:5]
    for column in (list(images), [image.ravel() for image in images], [i.ravel().tolist() for i in images]):
        found = model.predict(pd.DataFrame({"image": column}), params={"budget": budget})
        assert_same(found, expected(logged, 5, budget))


def test_signature_and_example(logged, model):
    signature = model.metadata.signature
    (images,) = signature.inputs.inputs
    assert (images.type, images.shape) == (np.dtype(np.uint8), (-1, 1, 8, 8))
    assert signature.outputs.input_names() == ["label", "probability", "exit", "operations"]
    (budget,) = signature.params.params
    assert (budget.name, budget.default) == ("budget", logged.classifier.default_budget)
    assert np.array_equal(np.array(model.input_example), logged.images[:2])


def test_nothing_stored_is_pickled(logged):
    files = [path for path in logged.stored.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"model.safetensors", "model.json", "definition.py", "MLmodel"} <= names
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80"]


def test_the_model_belongs_to_the_run(logged, tracked_run):
    from mlflow import MlflowClient

    client = MlflowClient(logged.tracking)
    run = client.get_run(tracked_run.result.run_id)
    model = client.get_logged_model(logged.uri.split("/")[-1])
    assert run.info.status == "FINISHED"
    assert run.outputs.model_outputs[0].model_id == model.model_id
    assert (model.experiment_id, model.source_run_id) == (run.info.experiment_id, run.info.run_id)
    assert model.status == "READY" and model.params["method"] == "metagf"
    assert "own_network:make with 3 exits" in model.tags["mlflow.note.content"]
    accuracy = {metric.key: metric.value for metric in model.metrics}["test_accuracy/exit_3"]
    assert accuracy == run.data.metrics["test_accuracy/exit_3"]


def test_a_run_that_is_not_there(logged):
    import mlflow

    from raygf.serving.mlflow_model import log_model

    before = mlflow.get_tracking_uri()
    with pytest.raises(TrackingError, match="can't track to") as caught:
        log_model(logged.run, logged.classifier, logged.tracking, "0" * 32)
    assert "\n" not in str(caught.value)
    assert mlflow.get_tracking_uri() == before


def link_packages(requirements, site):
    """Put into ``site`` what pip would install for ``requirements``, from the packages that are here.

    Raises:
        PackageNotFoundError: there is no such package.
    """
    todo, seen = [Requirement(line) for line in requirements], set()
    while todo:
        wanted = todo.pop()
        if str(wanted) in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(str(wanted))
        package = distribution(wanted.name)
        assert wanted.specifier.contains(package.version, prereleases=True), wanted
        for line in package.requires or ():
            needed = Requirement(line)
            if needed.marker and any(needed.marker.evaluate({"extra": extra}) for extra in wanted.extras):
                needed.marker = None
            todo.append(needed)
        for name in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(package.locate_file(name))


@pytest.fixture(scope="module")
def python(logged, tmp_path_factory):
    """Python in an environment of its own, with what the model says that it needs and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    needed = (logged.stored / "requirements.txt").read_text().split()
    link_packages(needed, next(folder.glob("lib/python*/site-packages")))
    missing = "from importlib.util import find_spec; print(*map(find_spec, ('raygf', 'ray', 'own_network')))"
    python, server = folder / "bin" / "python", folder / "bin" / "uvicorn"
    server.write_text(f"#!{python}\nfrom uvicorn import main\n\nmain()\n")
    server.chmod(0o755)
    assert subprocess.check_output([python, "-I", "-c", missing], text=True).split() == ["None"] * 3
    return python


@pytest.fixture
def server(logged, python, tmp_path):
    """``mlflow models serve`` by ``python`` on a port of its own; its address."""
    (port,) = free_ports(1)
    log = tmp_path / "serve.log"
    serve = (str(python), "-m", "mlflow", "models", "serve", "--workers", "1")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*serve, "-m", logged.uri, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)],
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                "MLFLOW_TRACKING_URI": logged.tracking,
                # The command starts another python by name.
                "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            },
            stdout=stream,
            stderr=stream,
        )
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/ping", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        program = psutil.Process(process.pid)
        end_processes([*program.children(recursive=True), program])
        process.wait(10)


def post(url, content):
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read())


def test_served_over_http(logged, server):
    budget = middle_budget(logged.classifier)
    content = {"inputs": logged.images.tolist(), "params": {"budget": budget}}
    found = pd.DataFrame(post(server, content)["predictions"])
    assert_same(found, expected(logged, 40, budget))
    # One real digit, as a row of pixels.
    pixels = [[logged.images[0].ravel().tolist()]]
    (row,) = post(server, {"dataframe_split": {"columns": ["image"], "data": pixels}})["predictions"]
    wanted = expected(logged, 1, logged.classifier.default_budget)
    assert (row["label"], row["exit"]) == (wanted["label"][0], wanted["exit"][0])
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, {"inputs": [[1, 2, 3]]})
    assert caught.value.code == 400
