"""Bad input: one line that names the cause and the remedy, and nothing executed or overwritten.

Every row of the tables is a case: what it is, what is made before, the job with its flags, what the line must
say, and the exit code. The job gets ``FLAGS`` first, so that it is small and trains in this process.
"""

import hashlib
import os
import pickle
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from bad_things import (
    NEWEST,
    Bench,
    array,
    bloated,
    boastful,
    cifar_archive,
    class_folders,
    cut,
    damage,
    each,
    edited,
    empty_file,
    file,
    flip,
    folder,
    gone,
    link,
    meta,
    networks,
    newest,
    nothing,
    object_array,
    one_row,
    only,
    other_format,
    parquet,
    past_run,
    photo,
    pickled,
    replaced,
    rows,
    torch_pickle,
    unreadable,
    weights,
)
from runs import one_error, run_here

from raygf.cli import parse

NETWORK = (
    *("--model.msdnet.exits", "2", "--model.msdnet.base", "1", "--model.msdnet.step", "1"),
    *("--model.msdnet.channels", "4", "--model.msdnet.factors", "1", "2"),
)
RUN = (
    *("--rounds", "2", "--batch-size", "8", "--storage.path", "runs", "--storage.name", "one"),
    *("--resources.executor", "local", "--tracking.enabled", "False"),
)
TINY = (*NETWORK, *RUN)
STREAMED = (
    *("--data.workers", "0", "--data.crop", "16", "--data.resize", "20", "--data.val", "0", *TINY),
    *("--model.msdnet.stem", "conv3"),
)
FLAGS = {
    "digits": ("--data.train-limit", "16", "--data.val", "20", *TINY),
    "cifar": ("--data.path", "set", "--data.val", "0", *TINY),
    "parquet": ("--data.source", "parquet", "--data.path", "set", "--data.val", "0", *TINY),
    "shards": ("--data.source", "shards", "--data.path", "set", *STREAMED),
    "folders": ("--data.source", "imagefolder", "--data.path", "set", *STREAMED),
    "evaluate": ("--log-to-mlflow", "False", "--importance", "False"),
    "demo": (),
    "toy": (),
}
PROGRAM = {"parquet": "cifar", "shards": "imagenet", "folders": "imagenet"}
RESUME = "digits --storage.resume True"
TRACKED = "digits --tracking.enabled True --tracking.uri"
OWN = "digits --model.name mine:"
SQUEEZE = "parquet --model.name torchvision:squeezenet1_1@0.5 --data.image-size 32 --model.weights"
NOT_WHOLE = f"{NEWEST}: not a whole checkpoint"


class Case(NamedTuple):
    """One row: what it is, what is made, the job and its flags, what its line must say, its exit code."""

    name: str
    made: Callable[[Bench], object]
    argv: str
    says: str
    """Pieces of the line, with " … " between them."""
    code: int = 2


def flags(name, argv, says):
    """The flags alone are bad."""
    return Case(name, nothing, argv, says)


def evaluated(name, made, says):
    """The newest checkpoint can't be evaluated."""
    return Case(name, made, f"evaluate --checkpoint {NEWEST}", says)


def own(name, function, says):
    """A network of one's own that is none."""
    return Case(name, networks, OWN + function, says)


CONFIG = [
    flags("unknown flag", "digits --nonsense 3", "--nonsense … --help"),
    flags("stray word", "digits quickly", "quickly … --help"),
    flags("flag without its value", "digits --optim.lr", "--optim.lr … --help"),
    flags("text for a number", "digits --optim.lr fast", "--optim.lr … 'fast'"),
    flags("NaN", "digits --optim.lr nan", "optim.lr = nan … finite number above 0"),
    flags("infinity", "digits --loss.aux inf", "loss.aux = inf … finite number"),
    flags("negative share", "digits --fusion.ema -0.1", "fusion.ema = -0.1 … at least 0"),
    flags("fraction for a count", "digits --rounds 1e3", "--rounds … '1e3'"),
    flags("no rounds", "digits --rounds 0", "rounds = 0 … at least 1"),
    flags("batch of one", "digits --batch-size 1", "batch_size = 1 … at least 2"),
    flags("no scales", "digits --model.msdnet.factors", "model.msdnet.factors = ()"),
    flags("list with a bad number", "digits --optim.milestones .5 2", "optim.milestones = 2"),
    flags("yes for True", "digits --data.flip yes", "--data.flip … True … False"),
    flags("no such choice", "digits --fusion.segments galaxy", "'galaxy' … channel"),
    flags("more scales than pixels", "digits --model.msdnet.factors 1 2 4 8 16 32",
          "model.msdnet.factors … 8x8 … room for 4"),
    flags("network of 300 GB", "digits --model.msdnet.channels 60000 --model.msdnet.factors 2 4",
          "model.name = 'msdnet' … no memory for the network, make it smaller"),
    flags("number beyond reason", "digits --model.msdnet.channels 9999999999999999999999",
          "model.msdnet.channels … at most 65536"),
    flags("number of 400 digits", f"digits --rounds 1{'0' * 400}", "rounds = 1000 … at most 1000000"),
    flags("number of 5000 digits", f"digits --rounds 1{'0' * 5000}", "--rounds … digits"),
    flags("a learning rate beyond reason", "digits --optim.lr 1e30", "optim.lr = 1e+30 … at most 1000"),
    flags("steps beyond reason", "toy --steps 99999999", "steps = 99999999 … at most 1000000"),
    flags("a name of two lines", "digits --storage.name 'a\nb'", "storage.name = … a plain folder name"),
    flags("images of 17 TB", "digits --data.image-size 100000", "100000x100000 … GiB … --data.image-size"),
    flags("padding beyond the image", "digits --data.pad 8", "data.pad = 8 … 8x8 … --data.pad"),
    flags("crop beyond the image", "folders --data.crop 30", "data.resize = 20 … data.crop = 30"),
    flags("one training image", "digits --data.train-limit 1",
          "1 training image is left … at least 2 … --data.train-limit"),
    flags("more held out than there are", "digits --data.val 1300", "data.val = 1300 … --data.val"),
    flags("test images of its own", "digits --data.test 5", "data.test = 5 … leave --data.test out"),
    flags("unknown recipe", "digits --recipe imagenet", "recipe = … did you mean 'imagenet-msdnet-"),
    flags("recipe without a name", "digits --recipe", "recipe = '' … must be one of"),
    flags("recipe for other images", "digits --recipe cifar10-vgg16-metagf --data.source digits",
          "images of 8x8 … --data.image-size 32 … --model.name"),
    flags("unknown method", "digits --method delta-nope", "method = 'delta-nope' … delta-pcgrad"),
    flags("no GPU", "digits --compute.device cuda", "compute.device = 'cuda' … cpu or auto"),
    flags("demo with a flag", "demo --rounds 3", "--rounds … --help"),
    flags("toy with too few steps", "toy --steps 9", "steps = 9 … at least 10"),
    flags("no such executor", "digits --resources.executor dask", "--resources.executor … 'dask'"),
    flags("more a class than there are", "digits --data.per-class 1000", "data.per_class = 1000"),
    Case("weights that become infinite", nothing,
         "digits --optim.lr 1000 --optim.weight-decay 1000 --batch-size 2 --storage.path other",
         "metagf, exit 1, round 1: … lower optim.lr", 1),
    Case("toy into a file", file("figures"), "toy --steps 10 --out figures", "can't write to figures"),
]  # fmt: skip

DATA = [
    flags("no folder", "parquet", "set: no such folder … --data.path"),
    flags("no path", "shards --data.path ''", "data.path is empty … --data.path"),
    flags("nobody's home", "parquet --data.path ~nobody-here/set", "~nobody-here … no such user … data.path"),
    flags("nobody's home, streamed", "folders --data.path ~nobody-here/set",
          "~nobody-here … no such user … data.path"),
    Case("empty folder", folder("set"), "parquet", "no files train*.parquet … --data.path"),
    Case("empty folder, streamed", folder("set"), "shards", "no files train*.parquet … --data.path"),
    Case("empty folder for classes", folder("set"), "folders", "no folder train … set/train/CLASS"),
    Case("class without images", each(class_folders(), folder("set/train/zebra")), "folders",
         "set/train/zebra: no images … .jpeg"),
    Case("class in the test images only", each(class_folders(), file("set/val/ape/0.jpg")), "folders",
         "set/val/ape … no class of that name"),
    Case("file for a folder", file("set"), "parquet", "set: no such folder … --data.path"),
    Case("unreadable: a file on the way", file("part"), "parquet --data.path part/set",
         "part/set: no such folder … --data.path"),
    Case("unreadable: a link to itself", link("set", "set"), "shards", "set … --data.path"),
    Case("unreadable: a folder of that name", each(parquet(), folder("set/train-1.parquet")), "parquet",
         "train-1.parquet … not a whole Parquet file"),
    Case("unreadable: a folder of that name, streamed", each(class_folders(), folder("set/train/cat/99.jpg")),
         "folders", "99.jpg: can't be read"),
    Case("wrong image column", parquet(image="picture"), "parquet", "no column 'image' … picture"),
    Case("truncated Parquet", each(parquet(), damage("set/train-00000.parquet", cut(0.7))), "parquet",
         "train-00000.parquet: not a whole Parquet file … fetch it again"),
    Case("corrupt JPEG", parquet(one_row(photo(17)[:200])), "parquet",
         "train-00000.parquet: row 17: the image can't be decoded … damaged"),
    Case("corrupt JPEG, streamed", parquet(one_row(photo(17)[:200])), "shards",
         "row 17: the image can't be decoded … --max-undecodable"),
    Case("corrupt JPEG in a folder", class_folders(one_row(photo(17)[:200])), "folders",
         "train/dog/17.jpg: the image can't be decoded … --max-undecodable"),
    Case("no image in a row", parquet(one_row(image=None)), "parquet", "row 17 has no image bytes"),
    Case("images of many sizes", parquet(one_row(photo(1, size=9))), "parquet",
         "row 17: image sizes differ: 9x9 … --data.image-size"),
    Case("no test images", each(parquet(), gone("set/test-00000.parquet")), "shards",
         "has no test images … --data.test"),
    Case("images scaled where they are streamed", parquet(), "shards --data.image-size 32",
         "data.image_size = 32: not for shards"),
    Case("CIFAR without its folder", folder("set"), "cifar", "cifar-10-batches-py … unpack … --data.path"),
    Case("pickle in CIFAR that runs code", cifar_archive, "cifar", "incomplete, or damaged … MD5 … unpack"),
]  # fmt: skip

CHECKPOINTS = [
    flags("missing", "evaluate --checkpoint no.npz", "no.npz: there is no such file"),
    flags("no names", "evaluate --checkpoint", "checkpoint = (): must be a list that is not empty"),
    flags("no name", "evaluate --checkpoint ''", "checkpoint = '' … not empty"),
    flags("nobody's home", "evaluate --checkpoint ~nobody-here/a.npz", "~nobody-here … no such user"),
    Case("folder without any", folder("runs/one"), "evaluate --checkpoint runs/one",
         "runs/one: no checkpoint in it … .npz"),
    Case("of another kind", pickled("model.pt"), "evaluate --checkpoint model.pt",
         "model.pt … a file … .npz"),
    evaluated("truncated", newest(cut(0.9)), NOT_WHOLE),
    evaluated("empty", newest(replaced(b"")), NOT_WHOLE),
    evaluated("bit flipped in the description", newest(flip(300)), NOT_WHOLE),
    evaluated("bit flipped in the weights", newest(flip(400_000)), NOT_WHOLE),
    evaluated("bit flipped in the directory", newest(flip(b"PK\x01\x02")), NOT_WHOLE),
    evaluated("pickle in its place", each(past_run, pickled(NEWEST)), NOT_WHOLE),
    evaluated("torch.save in its place", each(past_run, torch_pickle(NEWEST)), NOT_WHOLE),
    evaluated("pickle in an object array", object_array, NOT_WHOLE),
    evaluated("30 MB once unpacked", newest(bloated), f"{NOT_WHOLE} … compressed"),
    evaluated("array that claims a petabyte", newest(boastful), NOT_WHOLE),
    evaluated("of a later format", newest(other_format),
              "has format 2, this version reads format 1 … another raygf's"),
    evaluated("with a field of a later version", edited(lambda known, _: known["config"].update(warp=9)),
              "can't read its configuration … warp: no such field"),
    evaluated("with a bad value", edited(lambda known, _: known["config"]["optim"].update(lr=-1)),
              "can't read its configuration … optim.lr = -1"),
    evaluated("with a number for a section", edited(lambda known, _: known["config"].update(model=3)),
              "can't read its configuration … model = 3"),
    evaluated("of another network",
              edited(lambda known, _: known["config"]["model"]["msdnet"].update(channels=8)),
              f"{NEWEST} … another network"),
    evaluated("of other images", meta(input={"channels": 3, "height": 8, "width": 8, "classes": 2}),
              "2 classes of 3x8x8 images … 10 classes of 1x8x8"),
    evaluated("of other tensors", edited(lambda known, _: known["tensors"].__setitem__(0, "unknown")),
              f"{NEWEST} … another network"),
    evaluated("with text for a history", edited(lambda known, _: known.update(history="text")),
              "history is not a list of rounds"),
    evaluated("without a configuration", edited(lambda known, _: known.pop("config")),
              "does not say which configuration it belongs to"),
    evaluated("of round -1", meta(round=-1), f"{NEWEST} … round -1"),
    evaluated("weights of another number format", array("vector", lambda known: known.astype("f8")),
              f"{NEWEST} … float64 … float32"),
    evaluated("weights of text", array("vector", lambda known: known.astype("U9")), f"{NEWEST} … float32"),
    evaluated("weights that are not finite", array("vector", lambda known: known * float("nan")),
              f"{NEWEST} … not finite"),
    evaluated("link to elsewhere", each(past_run, file("secret", "geheim " * 999), link(NEWEST, "secret")),
              NOT_WHOLE),
    evaluated("link to nowhere", each(past_run, link(NEWEST, "nowhere")), f"{NEWEST}: there is no such file"),
    evaluated("link to a folder", each(past_run, link(NEWEST, "runs")), f"{NEWEST}"),
    Case("results into a file", each(past_run, file("out")), "evaluate --checkpoint runs/one --out out",
         "can't write to out"),
    Case("labels for other checkpoints", past_run, "evaluate --checkpoint runs/one --labels a b",
         "labels: 2 given for 1 checkpoints"),
    Case("resume: all damaged", only(cut(0.5)), RESUME, "no checkpoint in … not a whole checkpoint"),
    Case("resume: pickle that runs code", each(only(cut(0)), pickled(NEWEST)), RESUME,
         "no checkpoint in … not a whole checkpoint"),
    Case("resume: another configuration", past_run, f"{RESUME} --optim.lr 0.2",
         "another configuration … optim.lr was 0.1, is now 0.2"),
    Case("resume: link to another run", each(past_run, link("runs/two/round-000002.npz", NEWEST)),
         f"{RESUME} --storage.name two --seed 9", "another configuration … seed was 0, is now 9"),
    Case("resume: fusion weights of another size", array("eta", lambda known: known[:, 1:]), RESUME,
         "eta … another network"),
    Case("resume: weights that are not finite", array("vector", lambda known: known * float("inf")), RESUME,
         "not finite"),
    Case("no resume where checkpoints are", past_run, "digits",
         "runs/one holds checkpoints already … --storage.resume True … --storage.name"),
]  # fmt: skip

PLACES = [
    flags("unknown kind of store", f"{TRACKED} gopher://me:geheim@host",
          "can't track to gopher://me:***@host: … unsupported URI"),
    flags("folder for a store", f"{TRACKED} mlruns", "plain folders … sqlite:///"),
    flags("file:", f"{TRACKED} file://me:geheim@host/mlruns", "plain folders … me:***@host"),
    flags("no server", f"{TRACKED} http://127.0.0.1:{{port}}",
          "no MLflow server answers at http://127.0.0.1: … refused … --tracking.uri … --tracking.enabled"),
    flags("port out of range", f"{TRACKED} http://me:geheim@host:99999", "me:***@host … 0-65535"),
    flags("server without a name", f"{TRACKED} http://", "tracking.uri = 'http://' … names no server"),
    flags("password in the URI", f"{TRACKED} http://me:geheim@127.0.0.1:{{port}}", "me:***@127.0.0.1"),
    flags("password with an @", f"{TRACKED} http://me:ge@heim@127.0.0.1:{{port}}", "me:***@127.0.0.1"),
    flags("database in memory", f"{TRACKED} sqlite://", "tracking.uri = 'sqlite://' … names no file"),
    Case("folder for a database", folder("mlflow.db"), f"{TRACKED} sqlite:///mlflow.db", "is a folder"),
    flags("no folder for a database", f"{TRACKED} sqlite:///no/mlflow.db", "there is no folder"),
    Case("no database", file("other.db", "text " * 999), f"{TRACKED} sqlite:///other.db",
         "other.db … file is not a database … --tracking.uri"),
    flags("database that can't be made", f"{TRACKED} sqlite:////proc/mlflow.db",
          "/proc/mlflow.db: unable to open database file"),
    flags("no name for the experiment", "digits --tracking.experiment ''", "tracking.experiment = ''"),
    flags("no storage", "digits --storage.path ''", "storage.path = '' … not empty"),
    Case("file in the way", file("runs"), "digits", "storage.path: can't write to … runs/one"),
    Case("file in the way of the run", file("runs/one"), "digits", "storage.path: can't … runs/one"),
    flags("read-only", "digits --storage.path /proc/raygf", "storage.path: can't write to /proc/raygf"),
    flags("nobody's home for storage", "digits --storage.path ~nobody-here/runs",
          "storage.path … ~nobody-here … no such user"),
    flags("unknown kind of storage", "digits --storage.path floppy://a", "storage.path = 'floppy://a'"),
    flags("one slash too few", "digits --storage.path s3:/bucket/runs", "s3:/bucket/runs … s3://"),
    flags("no bucket", "digits --storage.path s3://", "storage.path … s3:// … bucket"),
    flags("name with a slash", "digits --storage.name a/b", "storage.name = 'a/b' … plain folder name"),
    flags("name beyond the folder", "digits --storage.name ..", "storage.name = '..'"),
    flags("name too long", f"digits --storage.name {'n' * 300}", "storage.name … at most"),
    flags("resume without a name", f"{RESUME} --storage.name ''", "storage.resume … --storage.name"),
]  # fmt: skip

CODE = [
    flags("no such network", "digits --model.name msdnett", "model.name = 'msdnett' … msdnet"),
    flags("module without a name", "digits --model.name :network", ":network … Empty module name"),
    flags("no such module", "digits --model.name nets:make", "nets:make … No module named 'nets'"),
    own("no such function", "nope", "mine:nope … can't be imported … 'nope'"),
    Case("module with a fault", networks, "digits --model.name broken:net", "broken:net … SyntaxError"),
    Case("module that exits", networks, "digits --model.name leaving:net", "leaving:net … SystemExit"),
    own("function that exits", "leaves", "mine:leaves … SystemExit"),
    own("function that raises", "raises", "mine:raises … ValueError: no such"),
    own("number for a network", "number", "must return a torch.nn.Module, not int"),
    own("tensor for a list", "tensor", "a list of logits (batch, 10) … a tensor (2, 10)"),
    own("too few classes", "classes", "a list of logits (batch, 10) … (2, 3)"),
    own("no exits", "empty", "a list of logits (batch, 10)"),
    own("another answer in training", "changing", "a list of logits … while training"),
    own("nothing to train", "frozen", "mine:frozen … no trainable parameter"),
    own("answer that depends on no weight", "deaf", "mine:deaf … no exit depends on a weight"),
    own("weights of another number format", "double", "mine:double … torch.float64 … float32"),
    Case("method that is no function", networks, "digits --method mine:no_method", "mine:no_method … int"),
    Case("method that raises", networks, "digits --method mine:raising_method",
         "mine:raising_method … ZeroDivisionError"),
    Case("method that returns text", networks, "digits --method delta-mine:text_method",
         "mine:text_method … one weight per exit"),
    Case("rule that raises", networks, "digits --method fusion:mine:raises",
         "fusion:mine:raises … ValueError"),
    Case("rule that returns no deltas", networks, "digits --method fusion:mine:no_method",
         "fusion:mine:no_method … a dict with a tensor … not 3"),
    Case("method with too many weights", networks, "digits --method mine:three_weights",
         "mine:three_weights … one weight per exit"),
    Case("torchvision's network without exits", parquet(), "parquet --model.name torchvision:resnet18",
         "torchvision:resnet18 … @0.3,0.6"),
    flags("torchvision's network on grey", "digits --model.name torchvision:resnet18@0.5",
          "torchvision:resnet18@0.5 … 3 channels"),
    Case("weights for a network without", torch_pickle("w.pt"), "digits --model.weights w.pt",
         "model.weights = 'w.pt' … it is damaged, or holds more than tensors"),
    flags("exits that count for nothing", "digits --loss.coefficients last", "'last' … within a step … sgd"),
    Case("frozen network without stages", networks, "digits --model.name mine:good --model.freeze True",
         "model.freeze: Net is no … MultiExitNetwork"),
    Case("weights that are missing", parquet(), f"{SQUEEZE} no.pt", "no.pt … No such file"),
    Case("weights that run code", each(parquet(), torch_pickle("w.pt")), f"{SQUEEZE} w.pt", "w.pt … read"),
    Case("weights as a pickle that runs code", each(parquet(), pickled("w.pkl")), f"{SQUEEZE} w.pkl",
         "w.pkl"),
    Case("weights truncated", each(parquet(), weights(), damage("weights.pt", cut(0.5))),
         f"{SQUEEZE} weights.pt", "weights.pt … can't be read"),
    Case("weights of another network", each(parquet(), weights(lambda state: state.popitem())),
         f"{SQUEEZE} weights.pt", "weights.pt … do not fit … missing"),
    Case("weights that are not finite",
         each(parquet(), weights(lambda state: state["features.0.bias"].fill_(torch.nan))),
         f"{SQUEEZE} weights.pt", "weights.pt … features.0.bias … not finite"),
]  # fmt: skip

RESOURCES = [
    flags("NaN CPUs", "digits --resources.cpus-per-exit nan", "resources.cpus_per_exit = nan"),
    flags("negative CPUs", "digits --resources.driver-cpus -1", "resources.driver_cpus = -1.0"),
    flags("too small a share for Ray", "digits --resources.cpus-per-exit 0.00001",
          "resources.cpus_per_exit = 1e-05 … 0.0001"),
    flags("one GPU and a half", "digits --resources.gpus-per-exit 1.5",
          "resources.gpus_per_exit = 1.5 … whole"),
    flags("no actors", "digits --resources.actors 0", "resources.actors = 0 … at least 1"),
    flags("negative failures", "digits --resources.max-failures -1", "resources.max_failures = -1"),
    flags("wait without end", "digits --resources.wait-for-resources-s 1e30",
          "resources.wait_for_resources_s = 1e+30 … at most"),
    flags("deadline of nothing", "digits --resources.exit-timeout-s 0", "exit_timeout_s = 0 … above 0"),
    flags("workers and actors", "digits --resources.workers 2", "resources.workers = 2 … metagf"),
    flags("workers and actors, on deltas", "digits --method delta-pcgrad --resources.workers 2",
          "resources.workers = 2: for methods within a step"),
    flags("workers and no such method", "digits --method pcgard --resources.workers 2",
          "method = 'pcgard': must be one of"),
    flags("batch too small for workers",
          "digits --method sgd --resources.executor ray --resources.workers 5 --batch-size 7",
          "batch_size = 7: must be at least 10"),
    flags("workers without CPUs",
          "digits --method sgd --resources.executor ray --resources.workers 2 --resources.driver-cpus 0",
          "resources.workers = 2: each needs CPUs"),
    flags("workers without Ray", "digits --method sgd --resources.workers 2", "workers = 2 … needs Ray"),
]  # fmt: skip

TABLE = [*CONFIG, *DATA, *CHECKPOINTS, *PLACES, *CODE, *RESOURCES]


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    """The folder of a run of the job "digits" with two checkpoints."""
    path = tmp_path_factory.mktemp("past")
    _, config = parse("", "digits", [*FLAGS["digits"], "--storage.path", str(path)])
    records, _ = run_here(config)
    assert [record.round for record in records] == [1, 2]
    return path / "one"


@pytest.fixture
def call(run_job, closed_port, monkeypatch):
    """Runs a row's job in this process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module in ("mine", "broken", "leaving"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    def call(argv):
        job, *flags = shlex.split(argv.format(port=closed_port))
        return run_job(PROGRAM.get(job, job), *FLAGS[job], *flags)

    return call


def contents(folder):
    """Every file and link below ``folder``, with a hash of what is in it; not what Python has compiled."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.parent.name == "__pycache__":
            continue
        if path.is_symlink():
            found[str(path)] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_bad_input(case, call, past, tmp_path):
    bench = Bench(tmp_path, past)
    case.made(bench)
    before = contents(tmp_path)
    outcome = call(case.argv)
    one_error(outcome, case.says, case.code)
    assert "geheim" not in outcome.err
    assert not bench.mark.exists()
    assert contents(tmp_path) == before


def test_the_pickles_would_run_code(tmp_path):
    """Else the marks that are missing above would mean nothing."""
    bench = Bench(tmp_path, tmp_path)
    each(pickled("plain"), torch_pickle("torch"), folder("runs/one"))(bench)
    pickle.loads((tmp_path / "plain").read_bytes())
    assert bench.mark.exists()
    bench.mark.unlink()
    torch.load(tmp_path / "torch", weights_only=False)
    assert bench.mark.exists()


# What looks odd and is fine ---------------------------------------------------------------------------------


class Fine(NamedTuple):
    """One row: what it is, what is made, the job and its flags, how many images it trains on."""

    name: str
    made: Callable[[Bench], object]
    argv: str
    images: int


SCALED = "parquet --data.image-size 8"
FINE = [
    Fine("grey", parquet(rows(24, mode="L")), "parquet", 24),
    Fine("CMYK", parquet(rows(24, mode="CMYK")), "parquet", 24),
    Fine("palette", parquet(rows(24, mode="P", format="PNG")), "parquet", 24),
    Fine("transparent", parquet(rows(24, mode="RGBA", format="PNG")), "parquet", 24),
    Fine("one pixel", parquet(rows(24, size=1), rows(8, size=1)), SCALED, 24),
    Fine("one pixel among others", parquet(one_row(photo(1, size=1))), SCALED, 24),
    Fine("grey, streamed", parquet(rows(24, mode="L")), "shards", 24),
    Fine("CMYK, streamed", parquet(rows(24, mode="CMYK")), "shards", 24),
    Fine("one pixel, streamed", parquet(rows(24, size=1)), "shards", 24),
    Fine("grey, CMYK, one pixel in folders",
         class_folders([*rows(8, mode="L"), *rows(8, mode="CMYK"), *rows(8, size=1)]), "folders", 24),
    Fine("one file without rows", each(parquet(), empty_file), "parquet", 24),
    Fine("link to a set", each(parquet(), link("other", "set")), "parquet --data.path other", 24),
    Fine("more actors than exits", nothing, "digits --resources.actors 10000", 16),
    Fine("batch of more than there are", nothing, "digits --batch-size 1000000000", 16),
    Fine("seed beyond 64 bits", nothing, "digits --seed 99999999999999999999999", 16),
    Fine("a flag twice: the last counts", nothing, "digits --rounds 9 --rounds 1", 16),
    Fine("resume where nothing is", nothing, RESUME, 16),
    Fine("resume past a damaged one", newest(cut(0.5)), RESUME, 16),
    Fine("network of one's own", networks, OWN + "good", 16),
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", FINE, ids=lambda case: case.name)
def test_what_looks_odd_and_is_fine(case, call, past, tmp_path):
    case.made(Bench(tmp_path, past))
    outcome = call(f"{case.argv} --storage.name {'one' if 'resume' in case.argv else 'fine'}")
    assert outcome.code == 0, outcome.err
    assert f"{case.images} training" in outcome.err
    assert all(0 <= accuracy <= 1 for accuracy in outcome.result["test_accuracy"])
    assert Path(outcome.result["checkpoint"]).is_file()


def test_what_only_root_may_read(call, tmp_path):
    """Permissions do not bind root, who then trains on the file; for others it is an error like any other."""
    each(parquet(), unreadable("set/train-00000.parquet"))(Bench(tmp_path, tmp_path))
    outcome = call("parquet")
    if os.geteuid() == 0:
        assert outcome.code == 0, outcome.err
    else:
        one_error(outcome, "train-00000.parquet … Permission denied")


def test_links_in_the_runs_folder_are_not_written_through(call, tmp_path):
    """Whatever stands where a run writes, what it points to is somebody else's."""
    names = [".probe", ".probe.part", *(f"round-{number:06d}.npz.part" for number in (1, 2))]
    bench = Bench(tmp_path, tmp_path)
    for number, name in enumerate(names):
        each(file(f"precious-{number}", "keep me"), link(f"runs/one/{name}", f"precious-{number}"))(bench)
    assert call("digits").code == 0
    assert {path.read_text() for path in tmp_path.glob("precious-*")} == {"keep me"}
    assert sorted(path.name for path in (tmp_path / "runs/one").glob("round-*")) == [
        "round-000001.npz",
        "round-000002.npz",
    ]
