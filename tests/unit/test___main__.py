"""The command ``raygf``: what it finds, what leading words stand for, and what it does for people."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from raygf import __main__ as command
from raygf.config.recipes import RECIPES
from raygf.serving.adaptive import CIFAR10, AdaptiveClassifier


def call(capsys, *words):
    """Exit code, standard output and standard error of ``raygf`` with ``words``."""
    code = command.main(words)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "flags", "full"),
    [
        ("digits --rounds 3", ["--recipe"], "--recipe digits --rounds 3"),
        ("lr digits --trials 3", ["--space", "--recipe"], "--space lr --recipe digits --trials 3"),
        ("a b c --out x", ["--checkpoint"], "--checkpoint a b c --out x"),
        ("run one.png two.png", ["--run", "--pictures"], "--run run --pictures one.png two.png"),
        ("--rounds 3 digits", ["--recipe"], "--rounds 3 digits"),
        ("", ["--recipe"], ""),
    ],
)
def test_leading_words_stand_for_flags(words, flags, full):
    assert command.as_flags(words.split(), *flags) == full.split()


def test_help_names_every_command_and_nothing_is_loaded_for_it(capsys):
    code, out, err = call(capsys, "--help")
    assert (code, err) == (0, "") and out == call(capsys)[1]
    assert {line.split()[0] for line in out.splitlines() if line.startswith("  ")} == {*command.COMMANDS}
    program = "import sys, raygf.__main__; raygf.__main__.main(['recipes']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "ray", "mlflow"} & {*done.stdout.splitlines()[-1].split()}


def test_recipes_are_listed_with_what_they_are(capsys):
    code, out, _ = call(capsys, "recipes", "100-150")
    lines = [line.split(maxsplit=3) for line in out.splitlines()]
    assert code == 0 and out.split()[:5] == ["RECIPE", "DATA", "NETWORK", "METHOD", "ROUNDS"]
    assert [line[0] for line in lines[1:]] == [name for name in RECIPES if "100-150" in name]
    assert lines[-1] == [
        "cifar100-150-msdnet-metagf-kd",
        "cifar100",
        "msdnet",
        "metagf with distillation  300",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("trian digits", "raygf trian: no such command; did you mean 'train'?; raygf --help lists them"),
        ("train digts", "recipe = 'digts': must be one of … did you mean 'digits'?"),
        ("train --config none.yaml", "config = 'none.yaml': can't be read"),
        ("train --resume --storage.path none", "resume: no run in none; set --storage.path"),
        ("evaluate runs/none", "runs/none: no checkpoint in it"),
        ("predict none.png", "none.png: no run's folder, and no picture: "),
        ("predict --run runs/none --pictures a.png", "runs/none/model.json: "),
        ("predict .", "predict: give pictures after ."),
        ("export --folder x", "--run"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words.split())
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert all(piece in err for piece in says.split(" … "))
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_classified_and_a_network_is_exported(capsys, monkeypatch, tmp_path, tracked_run):
    monkeypatch.chdir(tmp_path)
    folder = tracked_run.result.checkpoint.rpartition("/")[0]
    code, out, err = call(capsys, "export", folder, "model")
    assert code == 0 and json.loads(out) == {"folder": "model", "exits": 3} | json.loads(out), err
    images = (load_digits().images[:2] * (255 / 16)).round().astype(np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(f"{number}.png")
    (tmp_path / "text.png").write_text("no picture")
    expected = AdaptiveClassifier.load(folder).predict(images[:, None], budget=9e9)
    for run_folder in (folder, "model"):
        code, out, err = call(capsys, "predict", run_folder, "0.png", "1.png", "--budget", "9e9")
        answers = json.loads(out)["predictions"]
        assert [answer["class"] for answer in answers] == [str(label) for label in expected.label]
        assert [answer["probability"] for answer in answers] == expected.probability.tolist()
        assert [answer["operations"] for answer in answers] == expected.operations.tolist()
        assert [answer["exit"] for answer in answers] == [3, 3] and "1.png" in err
    code, _, err = call(capsys, "predict", "model", "text.png")
    assert code == 2 and err.startswith("error: text.png: no run's folder, and no picture: ")


def test_without_a_run_the_network_of_the_package_answers(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(f"{number}.png")
    model = AdaptiveClassifier.load()
    expected = model.predict(pixels.transpose(0, 3, 1, 2), budget=model.default_budget)
    answers = json.loads(call(capsys, "predict", "0.png", "1.png", "2.png")[1])["predictions"]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert [answer["class"] for answer in answers] == [names[label] for label in expected.label]
    assert [answer["operations"] for answer in answers] == expected.operations.tolist()
    assert (Path(CIFAR10) / "model.safetensors").stat().st_size < 4e6
    card = (Path(CIFAR10) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: raygf\n") and all(name in card for name in names)
