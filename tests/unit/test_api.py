"""raygf from Python: every public name's example runs, and what is given in Python is what is trained."""

import doctest
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import raygf
from raygf.errors import ConfigError, StorageError, UserError
from raygf.models.multi_exit import MultiExitNetwork
from raygf.sweeps.command import check_flags, parse_sweep
from raygf.sweeps.space import load_space


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of the test's own, in a process that is not in a cluster, whatever other tests have joined."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False)


def examples(name):
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(raygf, name), name, globs={})
    assert found.examples, f"{name} has no example"
    return found


def run_sweep(argv):
    """In place of a sweep, which needs Ray: the flags are understood; what a sweep returns, in part."""
    command = parse_sweep("", argv)
    check_flags(command)
    assert (command.recipe, command.options.trials, command.run.rounds) == ("digits", 2, 1)
    assert command.run.data.train_limit == 48 and not command.run.tracking.enabled
    return {"best_config": dict.fromkeys(load_space(command.options.space, command.run).fields)}


@pytest.mark.parametrize("name", raygf.__all__)
def test_the_example_in_the_docstring_runs(name, monkeypatch):
    monkeypatch.setattr("raygf.sweeps.run.run_sweep", run_sweep)
    failures = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(examples(name), out=failures.append)
    assert failures == []


def test_nothing_is_loaded_before_it_is_used():
    program = "import sys, raygf; dir(raygf); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "ray", "mlflow", "matplotlib"} & {*done.stdout.split()}
    assert all(getattr(raygf, name).__doc__ for name in dir(raygf) if name in raygf.__all__)
    with pytest.raises(AttributeError, match="'raygf' has no attribute 'tain'"):
        raygf.tain  # noqa: B018


class Shapes(Dataset):
    """Bright squares (class 1) and dark ones (class 0) as float tensors (1, 8, 8), or as grey PIL images."""

    classes = ("dark", "bright")

    def __init__(self, count, pictures=False):
        self.count, self.pictures = count, pictures

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = index % 2
        grey = np.full((8, 8), 40 + 160 * label + index, np.uint8)
        return (Image.fromarray(grey) if self.pictures else torch.tensor(grey / 255)[None]), label


class Two(MultiExitNetwork):
    """Two exits that see the mean of the image; ``given``: all weights at the start."""

    def __init__(self, given):
        mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__([mean, nn.Identity()], [nn.Linear(1, 2), nn.Linear(1, 2)])
        for weight in self.parameters():
            nn.init.constant_(weight, given)


SMALL = {"pad": 0, "batch_size": 5, "storage.name": "mine"}


def test_own_network_and_data_are_trained_as_they_are_given_and_loaded_with_them():
    network, data = Two(3.0), (Shapes(20), Shapes(6))
    run = raygf.train("digits", network=network, data=data, rounds=8, device="cpu", precision="fp32", **SMALL)
    assert run.accuracies == (1.0, 1.0)
    assert network.heads[0].weight.tolist() == [[3.0], [3.0]]  # it was copied
    assert run.config.data.val == 2 and run.loaded.dataset.class_names == Shapes.classes
    assert run.loaded.dataset.test.images[5].tolist() == [[[40 + 160 + 5] * 8] * 8]
    stored = raygf.load(run.folder, network=network, data=data)
    assert (stored.accuracies, stored.config) == (run.accuracies, run.config)
    assert torch.equal(stored.model().heads[0].weight, run.model().heads[0].weight)
    fast = raygf.export(stored, "model/")
    assert fast.predict(run.loaded.dataset.test.images, thresholds=[0, 0]).label.tolist() == [0, 1] * 3
    with pytest.raises(ConfigError, match=r"Shapes\(\)' was an object in Python: load the run there"):
        _ = raygf.load(run.folder).loaded
    with pytest.raises(StorageError, match="holds checkpoints already"):
        raygf.train("digits", network=network, data=data, **SMALL)


def test_a_network_begins_with_its_own_weights_and_functions_are_taken_by_name():
    data = Shapes(20), Shapes(6)
    still = {"optim.lr": 1e-6, "fusion.lr": 0, "weight_decay": 0, "val": 4, "momentum": 0}
    run = raygf.train("digits", network=Two(3.0), data=data, rounds=1, method=equally, **still, **SMALL)
    assert run.model().heads[0].weight[:, 0].tolist() == pytest.approx([3.0, 3.0], abs=1e-3)
    assert pickle.loads(pickle.dumps(run.config)) == run.config
    assert run.config.method.endswith("test_api:equally") and run.result.training_passes > 1


def equally(setting):
    return lambda gramian: torch.ones(len(gramian))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr": 0.1}, "lr: a run has no such field; there is optim.lr and fusion.lr"),
        ({"ronds": 3}, "ronds: a run has no such field; did you mean 'rounds'?"),
        ({"optim.momentun": 3}, "optim.momentun: a run has no such field; did you mean 'optim.momentum'?"),
        ({"method": "metgf"}, "or \"package.module:function\" of your own; did you mean 'metagf'?"),
        ({"segments": "chanel"}, "must be one of tensor, channel, block, network; did you mean 'channel'?"),
        ({"source": "cifar"}, "data.source = 'cifar': must be one of digits, … did you mean 'cifar10'?"),
        ({"network": "msdnt"}, "model.name = 'msdnt': must be one of msdnet, … did you mean 'msdnet'?"),
        ({"source": "hf:mnist"}, "data.source = 'hf:mnist': needs a package: pip install datasets"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(settings, says, tmp_path):
    with pytest.raises(UserError) as caught:
        raygf.train("digits", **{"rounds": 1, **settings})
    assert all(piece in str(caught.value) for piece in says.split(" … "))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_recipe_that_does_not_exist():
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        raygf.train("digts")


def test_a_run_is_in_this_process_and_untracked_unless_ray_or_mlflow_is_asked_for(monkeypatch):
    seen = []

    def instead(config, recipe):
        seen.append((config.resources.executor, config.tracking.enabled))
        raise ConfigError("seen")

    monkeypatch.setattr("raygf.api.run_to_end", instead)
    for name, value in ((None, ""), ("RAY_ADDRESS", "head:6379"), ("MLFLOW_TRACKING_URI", "sqlite:///a.db")):
        if name:
            monkeypatch.setenv(name, value)
        for run, settings in (("digits", {}), (raygf.RunConfig(), {}), ("digits", {"executor": "local"})):
            with pytest.raises(ConfigError, match="seen"):
                raygf.train(run, **settings)
    with_ray = [("ray", False), ("ray", True), ("local", False)]
    assert seen[:6] == [("local", False), ("ray", True), ("local", False), *with_ray]
    assert seen[6:] == [("ray", True), ("ray", True), ("local", True)]
