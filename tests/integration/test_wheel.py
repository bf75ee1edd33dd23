"""What the wheel installs, in an environment without this repository: the command, and its spaces."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from PIL import Image
from ray_head import python_without_raygf
from runs import REPOSITORY, checkpoints_left

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
SOURCES = ("raygf", "tune_spaces", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: building leaves files beside the sources."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        place = REPOSITORY / name
        copy = shutil.copytree if place.is_dir() else shutil.copyfile
        copy(place, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source))
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def raygf(wheel, tmp_path_factory):
    """The installed command, run in a folder of its own."""
    folder = tmp_path_factory.mktemp("environment")
    python = python_without_raygf(folder)
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW_"))}

    def call(*words):
        command = [str(python.with_name("raygf")), *words]
        done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call, folder


def pip(*words):
    subprocess.run([sys.executable, "-m", "pip", "-q", *words], check=True, timeout=120)


def test_the_wheel_holds_raygf_alone_with_its_spaces_and_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    assert {name.split("/")[0] for name in names} == {"raygf", f"raygf-{PROJECT['version']}.dist-info"}
    code = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "raygf").rglob("*.py")}
    spaces = {f"raygf/tune_spaces/{path.name}" for path in (REPOSITORY / "tune_spaces").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == code | spaces
    network = {"model.safetensors", "model.json", "README.md"}
    assert {"raygf/py.typed"} | {f"raygf/serving/cifar10/{name}" for name in network} <= {*names}
    for line in ("Author: raygf developers", "License-Expression: MIT", "License-File: LICENSE"):
        assert line in metadata


def test_pictures_are_classified_by_the_network_that_is_installed(raygf):
    call, folder = raygf
    Image.new("RGB", (64, 48), "blue").save(folder / "blue.png")
    (answer,) = json.loads(call("predict", "blue.png"))["predictions"]
    assert answer["picture"] == "blue.png" and answer["class"] in CLASSES.split()
    assert 0 < answer["probability"] <= 1 and answer["exit"] in range(1, 6)


def test_what_is_installed_trains_and_finds_its_spaces(raygf):
    """Sweeps to their end: test_sweep.py, and test_job_submit.py, where raygf is not installed at all."""
    call, folder = raygf
    quiet = ("--data.train-limit", "48", "--tracking.enabled", "False", "--storage.name")
    local = ("--rounds", "2", "--resources.executor", "local")
    result = json.loads(call("train", "digits", *local, *quiet, "one").splitlines()[-1])
    assert result["rounds"] == 2 and len(result["test_accuracy"]) == 3
    assert checkpoints_left(folder / "runs" / "one") == ["round-000001.npz", "round-000002.npz"]
    shown = call("sweep", "--help")
    for space in (REPOSITORY / "tune_spaces").glob("[a-z]*.py"):
        assert re.search(rf"^\W*{space.stem}\b", shown, re.MULTILINE), space
