"""Bad input: one line that names the cause and the remedy, and nothing executed or overwritten.

Every row of the tables is a case: what it is, what is made before, the job with its flags, the exit code, and
what the line must say. The job gets ``FLAGS`` first, so that it is small and trains in this process.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from bad_things import (
    NEWEST,
    Bench,
    Make,
    array,
    bloated,
    boastful,
    cifar_archive,
    class_folders,
    copied,
    cut,
    damage,
    database,
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
from runs import free_port, local_driver

from raygf.cli import parse

RunJob = Callable[..., Any]
Call = Callable[[str], Any]

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
    """One row: what it is, what is made, the job and its flags, its exit code, what its line must say."""

    name: str
    made: Make
    argv: str
    code: int
    says: str
    """Pieces of the line, with " … " between them."""


CONFIG = [
    Case("unknown flag", nothing, "digits --nonsense 3", 2, "--nonsense … --help"),
    Case("stray word", nothing, "digits quickly", 2, "quickly … --help"),
    Case("flag without its value", nothing, "digits --optim.lr", 2, "--optim.lr … --help"),
    Case("text for a number", nothing, "digits --optim.lr fast", 2, "--optim.lr … 'fast'"),
    Case("NaN", nothing, "digits --optim.lr nan", 2, "optim.lr = nan … finite number above 0"),
    Case("infinity", nothing, "digits --loss.aux inf", 2, "loss.aux = inf … finite number"),
    Case("negative share", nothing, "digits --fusion.ema -0.1", 2, "fusion.ema = -0.1 … at least 0"),
    Case("fraction for a count", nothing, "digits --rounds 1e3", 2, "--rounds … '1e3'"),
    Case("no rounds", nothing, "digits --rounds 0", 2, "rounds = 0 … at least 1"),
    Case("batch of one", nothing, "digits --batch-size 1", 2, "batch_size = 1 … at least 2"),
    Case("no scales", nothing, "digits --model.msdnet.factors", 2, "model.msdnet.factors = ()"),
    Case("list with a bad number", nothing, "digits --optim.milestones .5 2", 2, "optim.milestones = 2"),
    Case("yes for True", nothing, "digits --data.flip yes", 2, "--data.flip … True … False"),
    Case("no such choice", nothing, "digits --fusion.segments galaxy", 2, "'galaxy' … channel"),
    Case("more scales than pixels", nothing, "digits --model.msdnet.factors 1 2 4 8 16 32", 2,
         "model.msdnet.factors … 8x8 … room for 4"),
    Case("network of 300 GB", nothing, "digits --model.msdnet.channels 60000 --model.msdnet.factors 2 4", 2,
         "model.name = 'msdnet' … no memory for the network, make it smaller"),
    Case("number beyond reason", nothing, "digits --model.msdnet.channels 9999999999999999999999", 2,
         "model.msdnet.channels … at most 65536"),
    Case("images of 17 TB", nothing, "digits --data.image-size 100000", 2,
         "100000x100000 … GiB … --data.image-size"),
    Case("padding beyond the image", nothing, "digits --data.pad 8", 2, "data.pad = 8 … 8x8 … --data.pad"),
    Case("crop beyond the image", nothing, "folders --data.crop 30", 2, "data.resize = 20 … data.crop = 30"),
    Case("one training image", nothing, "digits --data.train-limit 1", 2,
         "1 training image is left … at least 2 … --data.train-limit"),
    Case("more held out than there are", nothing, "digits --data.val 1300", 2,
         "data.val = 1300 … --data.val"),
    Case("test images of its own", nothing, "digits --data.test 5", 2,
         "data.test = 5 … leave --data.test out"),
    Case("unknown recipe", nothing, "digits --recipe imagenet", 2,
         "recipe = 'imagenet' … imagenet-msdnet-sgd"),
    Case("recipe without a name", nothing, "digits --recipe", 2, "recipe = '' … must be one of"),
    Case("recipe for other images", nothing, "digits --recipe cifar10-vgg16-metagf --data.source digits", 2,
         "images of 8x8 … --data.image-size 32 … --model.name"),
    Case("unknown method", nothing, "digits --method delta-nope", 2, "method = 'delta-nope' … delta-pcgrad"),
    Case("no GPU", nothing, "digits --compute.device cuda", 2, "compute.device = 'cuda' … cpu or auto"),
    Case("demo with a flag", nothing, "demo --rounds 3", 2, "--rounds … --help"),
    Case("toy with too few steps", nothing, "toy --steps 9", 2, "steps = 9 … at least 10"),
    Case("no such executor", nothing, "digits --resources.executor dask", 2, "--resources.executor … 'dask'"),
    Case("more a class than there are", nothing, "digits --data.per-class 1000", 2, "data.per_class = 1000"),
    Case("weights that become infinite", nothing, "digits --optim.lr 1e30 --storage.path other", 1,
         "metagf, exit 1, round 1: … lower optim.lr"),
    Case("toy into a file", file("figures"), "toy --steps 10 --out figures", 2, "can't write to figures"),
]  # fmt: skip

DATA = [
    Case("no folder", nothing, "parquet", 2, "set: no such folder … --data.path"),
    Case("no path", nothing, "shards --data.path ''", 2, "data.path is empty … --data.path"),
    Case("nobody's home", nothing, "parquet --data.path ~nobody-here/set", 2,
         "~nobody-here … no such user … data.path"),
    Case("nobody's home, streamed", nothing, "folders --data.path ~nobody-here/set", 2,
         "~nobody-here … no such user … data.path"),
    Case("empty folder", folder("set"), "parquet", 2, "no files train*.parquet … --data.path"),
    Case("empty folder, streamed", folder("set"), "shards", 2, "no files train*.parquet … --data.path"),
    Case("empty folder for classes", folder("set"), "folders", 2, "no folder train … set/train/CLASS"),
    Case("class without images", each(class_folders(), folder("set/train/zebra")), "folders", 2,
         "set/train/zebra: no images … .jpeg"),
    Case("class in the test images only", each(class_folders(), file("set/val/ape/0.jpg")), "folders", 2,
         "set/val/ape … no class of that name"),
    Case("file for a folder", file("set"), "parquet", 2, "set: no such folder … --data.path"),
    Case("unreadable: a file on the way", file("part"), "parquet --data.path part/set", 2,
         "part/set: no such folder … --data.path"),
    Case("unreadable: a link to itself", link("set", "set"), "shards", 2, "set … --data.path"),
    Case("unreadable: a folder of that name", each(parquet(), folder("set/train-1.parquet")), "parquet", 2,
         "train-1.parquet … not a whole Parquet file"),
    Case("unreadable: a folder of that name, streamed", each(class_folders(), folder("set/train/cat/99.jpg")),
         "folders", 2, "99.jpg: can't be read"),
    Case("wrong image column", parquet(image="picture"), "parquet", 2, "no column 'image' … 'picture'"),
    Case("wrong image column, streamed", parquet(image="picture"), "shards", 2, "no column 'image'"),
    Case("no label column", parquet(kind="string"), "shards", 2, "no label column … whole numbers"),
    Case("class names of no text", parquet(names=b"cat,\xff"), "parquet", 2, "class_names … UTF-8"),
    Case("truncated Parquet", each(parquet(), damage("set/train-00000.parquet", cut(0.7))), "parquet", 2,
         "train-00000.parquet: not a whole Parquet file … fetch it again"),
    Case("truncated Parquet, streamed", each(parquet(), damage("set/test-00000.parquet", cut(0.7))), "shards",
         2, "test-00000.parquet: not a whole Parquet file … fetch it again"),
    Case("empty Parquet", each(parquet(), damage("set/train-00000.parquet", replaced(b""))), "shards", 2,
         "train-00000.parquet: not a whole Parquet file … fetch it again"),
    Case("pickle for a Parquet", each(parquet(), pickled("set/train-00000.parquet")), "parquet", 2,
         "train-00000.parquet: not a whole Parquet file"),
    Case("corrupt JPEG", parquet(one_row(photo(17)[:200])), "parquet", 2,
         "train-00000.parquet: row 17: the image can't be decoded … damaged"),
    Case("corrupt JPEG, streamed", parquet(one_row(photo(17)[:200])), "shards", 2,
         "row 17: the image can't be decoded … --data.max-undecodable"),
    Case("corrupt JPEG in a folder", class_folders(one_row(photo(17)[:200])), "folders", 2,
         "train/dog/17.jpg: the image can't be decoded … --data.max-undecodable"),
    Case("no image in a row", parquet(one_row(image=None)), "parquet", 2, "row 17 has no image bytes"),
    Case("images of many sizes", parquet(one_row(photo(1, size=9))), "parquet", 2,
         "row 17: image sizes differ: 9x9 … --data.image-size"),
    Case("label -1", parquet(one_row(label=-1)), "parquet", 2, "row 17: label -1 … from 0 to 1"),
    Case("label -1, streamed", parquet(one_row(label=-1)), "shards", 2, "row 17: label -1 … from 0 to 1"),
    Case("label = classes", parquet(one_row(label=2)), "parquet", 2, "row 17: label 2 … from 0 to 1"),
    Case("label = classes, streamed", parquet(one_row(label=2)), "shards", 2, "row 17: label 2 … 0 to 1"),
    Case("no label in a row", parquet(one_row(label=None)), "shards", 2, "row 17 has no label"),
    Case("zero rows", parquet(train=[]), "parquet", 2, "train-00000.parquet: the split has no rows"),
    Case("zero rows, streamed", parquet(train=[]), "shards", 2, "train-00000.parquet: the split has no rows"),
    Case("no test images", each(parquet(), gone("set/test-00000.parquet")), "shards", 2,
         "has no test images … --data.test"),
    Case("images scaled where they are streamed", parquet(), "shards --data.image-size 32", 2,
         "data.image_size = 32: not for shards"),
    Case("duplicated shard", each(parquet(), copied("set/train-00000.parquet", "set/train-00001.parquet")),
         "parquet", 2, "train-00001.parquet: the same file as … train-00000.parquet … remove one"),
    Case("duplicated shard, streamed",
         each(parquet(), link("set/train-1.parquet", "set/train-00000.parquet")), "shards", 2,
         "train-1.parquet: the same file as … train-00000.parquet … remove one"),
    Case("CIFAR without its folder", folder("set"), "cifar", 2, "cifar-10-batches-py … unpack … --data.path"),
    Case("pickle in CIFAR that runs code", cifar_archive, "cifar", 2, "data_batch_1: damaged … MD5 … unpack"),
]  # fmt: skip

CHECKPOINTS = [
    Case("missing", nothing, "evaluate --checkpoint no.npz", 2, "no.npz: there is no such file"),
    Case("no name", nothing, "evaluate --checkpoint ''", 2, "checkpoint = '' … not empty"),
    Case("nobody's home", nothing, "evaluate --checkpoint ~nobody-here/a.npz", 2,
         "~nobody-here … no such user"),
    Case("folder without any", folder("runs/one"), "evaluate --checkpoint runs/one", 2,
         "runs/one: no checkpoint in it … .npz"),
    Case("of another kind", pickled("model.pt"), "evaluate --checkpoint model.pt", 2,
         "model.pt … a file … .npz"),
    Case("truncated", newest(cut(0.9)), f"evaluate --checkpoint {NEWEST}", 2, f"{NOT_WHOLE}"),
    Case("empty", newest(replaced(b"")), f"evaluate --checkpoint {NEWEST}", 2, f"{NOT_WHOLE}"),
    Case("bit flipped in the description", newest(flip(300)), f"evaluate --checkpoint {NEWEST}", 2,
         f"{NOT_WHOLE}"),
    Case("bit flipped in the weights", newest(flip(400_000)), f"evaluate --checkpoint {NEWEST}", 2,
         f"{NOT_WHOLE}"),
    Case("bit flipped in the directory", newest(flip(b"PK\x01\x02")), f"evaluate --checkpoint {NEWEST}", 2,
         f"{NOT_WHOLE}"),
    Case("pickle in its place", each(past_run, pickled(NEWEST)), f"evaluate --checkpoint {NEWEST}", 2,
         f"{NOT_WHOLE}"),
    Case("torch.save in its place", each(past_run, torch_pickle(NEWEST)), f"evaluate --checkpoint {NEWEST}",
         2, f"{NOT_WHOLE}"),
    Case("pickle in an object array", object_array, f"evaluate --checkpoint {NEWEST}", 2, f"{NOT_WHOLE}"),
    Case("30 MB once unpacked", newest(bloated), f"evaluate --checkpoint {NEWEST}", 2,
         f"{NOT_WHOLE} … compressed"),
    Case("array that claims a petabyte", newest(boastful), f"evaluate --checkpoint {NEWEST}", 2,
         f"{NOT_WHOLE}"),
    Case("of a later format", newest(other_format), f"evaluate --checkpoint {NEWEST}", 2,
         "has format 2, this version reads format 1 … another raygf's"),
    Case("with a field of a later version", edited(lambda known, _: known["config"].update(warp=9)),
         f"evaluate --checkpoint {NEWEST}", 2, "can't read its configuration … warp: no such field"),
    Case("with a bad value", edited(lambda known, _: known["config"]["optim"].update(lr=-1)),
         f"evaluate --checkpoint {NEWEST}", 2, "can't read its configuration … optim.lr = -1"),
    Case("with a number for a section", edited(lambda known, _: known["config"].update(model=3)),
         f"evaluate --checkpoint {NEWEST}", 2, "can't read its configuration … model = 3"),
    Case("of another network", edited(lambda known, _: known["config"]["model"]["msdnet"].update(channels=8)),
         f"evaluate --checkpoint {NEWEST}", 2, f"{NEWEST} … another network"),
    Case("of other images", meta(input={"channels": 3, "height": 8, "width": 8, "classes": 2}),
         f"evaluate --checkpoint {NEWEST}", 2, "2 classes of 3x8x8 images … 10 classes of 1x8x8"),
    Case("of other tensors", edited(lambda known, _: known["tensors"].__setitem__(0, "unknown")),
         f"evaluate --checkpoint {NEWEST}", 2, f"{NEWEST} … another network"),
    Case("with text for a history", edited(lambda known, _: known.update(history="text")),
         f"evaluate --checkpoint {NEWEST}", 2, "history is not a list of rounds"),
    Case("without a configuration", edited(lambda known, _: known.pop("config")),
         f"evaluate --checkpoint {NEWEST}", 2, "does not say which configuration it belongs to"),
    Case("of round -1", meta(round=-1), f"evaluate --checkpoint {NEWEST}", 2, f"{NEWEST} … round -1"),
    Case("weights of another number format", array("vector", lambda known: known.astype("f8")),
         f"evaluate --checkpoint {NEWEST}", 2, f"{NEWEST} … float64 … float32"),
    Case("weights of text", array("vector", lambda known: known.astype("U9")),
         f"evaluate --checkpoint {NEWEST}", 2, f"{NEWEST} … float32"),
    Case("weights that are not finite", array("vector", lambda known: known * float("nan")),
         f"evaluate --checkpoint {NEWEST}", 2, f"{NEWEST} … not finite"),
    Case("link to elsewhere", each(past_run, file("secret", "geheim " * 999), link(NEWEST, "secret")),
         f"evaluate --checkpoint {NEWEST}", 2, f"{NOT_WHOLE}"),
    Case("link to nowhere", each(past_run, link(NEWEST, "nowhere")), f"evaluate --checkpoint {NEWEST}", 2,
         f"{NEWEST}: there is no such file"),
    Case("link to a folder", each(past_run, link(NEWEST, "runs")), f"evaluate --checkpoint {NEWEST}", 2,
         f"{NEWEST}"),
    Case("results into a file", each(past_run, file("out")), "evaluate --checkpoint runs/one --out out", 2,
         "can't write to out"),
    Case("labels for other checkpoints", past_run, "evaluate --checkpoint runs/one --labels a b", 2,
         "labels: 2 given for 1 checkpoints"),
    Case("resume: all damaged", only(cut(0.5)), RESUME, 2, "no checkpoint in … not a whole checkpoint"),
    Case("resume: pickle that runs code", each(only(cut(0)), pickled(NEWEST)), RESUME, 2,
         "no checkpoint in … not a whole checkpoint"),
    Case("resume: another configuration", past_run, f"{RESUME} --optim.lr 0.2", 2,
         "another configuration … optim.lr was 0.1, is now 0.2"),
    Case("resume: link to another run", each(past_run, link("runs/two/round-000002.npz", NEWEST)),
         f"{RESUME} --storage.name two --seed 9", 2, "another configuration … seed was 0, is now 9"),
    Case("resume: fusion weights of another size", array("eta", lambda known: known[:, 1:]), RESUME, 2,
         "eta … another network"),
    Case("resume: weights that are not finite", array("vector", lambda known: known * float("inf")), RESUME,
         2, "not finite"),
    Case("no resume where checkpoints are", past_run, "digits", 2,
         "runs/one holds checkpoints already … --storage.resume True … --storage.name"),
]  # fmt: skip

PLACES = [
    Case("unknown kind of store", nothing, f"{TRACKED} gopher://me:geheim@host", 2,
         "tracking.uri = 'gopher://me:***@host' … known are http"),
    Case("folder for a store", nothing, f"{TRACKED} mlruns", 2, "plain folders … sqlite:///"),
    Case("file:", nothing, f"{TRACKED} file://me:geheim@host/mlruns", 2, "plain folders … me:***@host"),
    Case("no server", nothing, f"{TRACKED} http://127.0.0.1:{{port}}", 2,
         "no MLflow server answers at http://127.0.0.1: … refused … --tracking.uri … --tracking.enabled"),
    Case("port out of range", nothing, f"{TRACKED} http://me:geheim@host:99999", 2, "me:***@host … 0-65535"),
    Case("server without a name", nothing, f"{TRACKED} http://", 2,
         "tracking.uri = 'http://' … names no server"),
    Case("password in the URI", nothing, f"{TRACKED} http://me:geheim@127.0.0.1:{{port}}", 2,
         "me:***@127.0.0.1"),
    Case("password with an @", nothing, f"{TRACKED} http://me:ge@heim@127.0.0.1:{{port}}", 2,
         "me:***@127.0.0.1"),
    Case("password among the options", nothing,
         f"{TRACKED} 'postgresql://127.0.0.1:{{port}}/db?user=me&password=geheim'", 2,
         "no database answers at … password=***"),
    Case("database in memory", nothing, f"{TRACKED} sqlite://", 2,
         "tracking.uri = 'sqlite://' … names no file"),
    Case("folder for a database", folder("mlflow.db"), f"{TRACKED} sqlite:///mlflow.db", 2, "is a folder"),
    Case("no folder for a database", nothing, f"{TRACKED} sqlite:///no/mlflow.db", 2, "there is no folder"),
    Case("database of something else", database("CREATE TABLE songs (name TEXT)"),
         f"{TRACKED} sqlite:///other.db", 2, "other.db … songs … not MLflow's … --tracking.uri"),
    Case("database of another program's versions",
         database("CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE songs (name TEXT)"),
         f"{TRACKED} sqlite:///other.db", 2, "other.db … not MLflow's … --tracking.uri"),
    Case("no database", file("other.db", "text " * 999), f"{TRACKED} sqlite:///other.db", 2,
         "other.db … file is not a database … --tracking.uri"),
    Case("database that can't be made", nothing, f"{TRACKED} sqlite:////proc/mlflow.db", 2,
         "/proc/mlflow.db: unable to open database file"),
    Case("no name for the experiment", nothing, "digits --tracking.experiment ''", 2,
         "tracking.experiment = ''"),
    Case("no storage", nothing, "digits --storage.path ''", 2, "storage.path = '' … not empty"),
    Case("file in the way", file("runs"), "digits", 2, "storage.path: can't write to … runs/one"),
    Case("file in the way of the run", file("runs/one"), "digits", 2, "storage.path: can't … runs/one"),
    Case("read-only", nothing, "digits --storage.path /proc/raygf", 2,
         "storage.path: can't write to /proc/raygf"),
    Case("nobody's home for storage", nothing, "digits --storage.path ~nobody-here/runs", 2,
         "storage.path … ~nobody-here … no such user"),
    Case("unknown kind of storage", nothing, "digits --storage.path floppy://a", 2,
         "storage.path = 'floppy://a'"),
    Case("one slash too few", nothing, "digits --storage.path s3:/bucket/runs", 2, "s3:/bucket/runs … s3://"),
    Case("no bucket", nothing, "digits --storage.path s3://", 2, "storage.path … s3:// … bucket"),
    Case("name with a slash", nothing, "digits --storage.name a/b", 2,
         "storage.name = 'a/b' … plain folder name"),
    Case("name beyond the folder", nothing, "digits --storage.name ..", 2, "storage.name = '..'"),
    Case("name too long", nothing, f"digits --storage.name {'n' * 300}", 2, "storage.name … at most"),
    Case("resume without a name", nothing, f"{RESUME} --storage.name ''", 2,
         "storage.resume … --storage.name"),
]  # fmt: skip

CODE = [
    Case("no such network", nothing, "digits --model.name msdnett", 2, "model.name = 'msdnett' … msdnet"),
    Case("module without a name", nothing, "digits --model.name :network", 2, ":network … Empty module name"),
    Case("no such module", nothing, "digits --model.name nets:make", 2, "nets:make … No module named 'nets'"),
    Case("no such function", networks, OWN + "nope", 2, "mine:nope … can't be imported … 'nope'"),
    Case("module with a fault", networks, "digits --model.name broken:net", 2, "broken:net … SyntaxError"),
    Case("module that exits", networks, "digits --model.name leaving:net", 2, "leaving:net … SystemExit"),
    Case("function that exits", networks, OWN + "leaves", 2, "mine:leaves … SystemExit"),
    Case("function that raises", networks, OWN + "raises", 2, "mine:raises … ValueError: no such"),
    Case("number for a network", networks, OWN + "number", 2, "must return a torch.nn.Module, not int"),
    Case("tensor for a list", networks, OWN + "tensor", 2, "a list of logits (batch, 10) … a tensor (2, 10)"),
    Case("too few classes", networks, OWN + "classes", 2, "a list of logits (batch, 10) … (2, 3)"),
    Case("no exits", networks, OWN + "empty", 2, "a list of logits (batch, 10)"),
    Case("another answer in training", networks, OWN + "changing", 2, "a list of logits … while training"),
    Case("nothing to train", networks, OWN + "frozen", 2, "mine:frozen … no trainable parameter"),
    Case("answer that depends on no weight", networks, OWN + "deaf", 2,
         "exit 1 … no module's output is its logits … nn.Linear"),
    Case("weights of another number format", networks, OWN + "double", 2,
         "mine:double … torch.float64 … float32"),
    Case("method that is no function", networks, "digits --method mine:no_method", 2, "mine:no_method … int"),
    Case("method that raises", networks, "digits --method mine:raising_method", 2,
         "mine:raising_method … ZeroDivisionError"),
    Case("method that returns text", networks, "digits --method delta-mine:text_method", 2,
         "mine:text_method … one weight per exit"),
    Case("method with too many weights", networks, "digits --method mine:three_weights", 2,
         "mine:three_weights … one weight per exit"),
    Case("torchvision's network without exits", parquet(), "parquet --model.name torchvision:resnet18", 2,
         "torchvision:resnet18 … @0.3,0.6"),
    Case("torchvision's network on grey", nothing, "digits --model.name torchvision:resnet18@0.5", 2,
         "torchvision:resnet18@0.5 … 3 channels"),
    Case("weights for a network without", torch_pickle("w.pt"), "digits --model.weights w.pt", 2,
         "model.weights = 'w.pt' … torchvision"),
    Case("weights that are missing", parquet(), f"{SQUEEZE} no.pt", 2, "no.pt … No such file"),
    Case("weights that run code", each(parquet(), torch_pickle("w.pt")), f"{SQUEEZE} w.pt", 2, "w.pt … read"),
    Case("weights as a pickle that runs code", each(parquet(), pickled("w.pkl")), f"{SQUEEZE} w.pkl", 2,
         "w.pkl"),
    Case("weights truncated", each(parquet(), weights(), damage("weights.pt", cut(0.5))),
         f"{SQUEEZE} weights.pt", 2, "weights.pt … can't be read"),
    Case("weights of another network", each(parquet(), weights(lambda state: state.popitem())),
         f"{SQUEEZE} weights.pt", 2, "weights.pt … do not fit … missing"),
    Case("weights that are not finite",
         each(parquet(), weights(lambda state: state["features.0.bias"].fill_(torch.nan))),
         f"{SQUEEZE} weights.pt", 2, "weights.pt … features.0.bias … not finite"),
]  # fmt: skip

RESOURCES = [
    Case("NaN CPUs", nothing, "digits --resources.cpus-per-exit nan", 2, "resources.cpus_per_exit = nan"),
    Case("negative CPUs", nothing, "digits --resources.driver-cpus -1", 2, "resources.driver_cpus = -1.0"),
    Case("too small a share for Ray", nothing, "digits --resources.cpus-per-exit 0.00001", 2,
         "resources.cpus_per_exit = 1e-05 … 0.0001"),
    Case("one GPU and a half", nothing, "digits --resources.gpus-per-exit 1.5", 2,
         "resources.gpus_per_exit = 1.5 … whole"),
    Case("no actors", nothing, "digits --resources.actors 0", 2, "resources.actors = 0 … at least 1"),
    Case("negative failures", nothing, "digits --resources.max-failures -1", 2,
         "resources.max_failures = -1"),
    Case("wait without end", nothing, "digits --resources.wait-for-resources-s 1e30", 2,
         "resources.wait_for_resources_s = 1e+30 … at most"),
    Case("deadline of nothing", nothing, "digits --resources.exit-timeout-s 0", 2,
         "exit_timeout_s = 0 … above 0"),
    Case("workers and actors", nothing, "digits --resources.workers 2", 2, "resources.workers = 2 … metagf"),
    Case("workers and actors, on deltas", nothing, "digits --method delta-pcgrad --resources.workers 2", 2,
         "resources.workers = 2: for methods within a step"),
    Case("workers and no such method", nothing, "digits --method pcgard --resources.workers 2", 2,
         "method = 'pcgard': must be one of"),
    Case("batch too small for workers", nothing,
         "digits --method sgd --resources.executor ray --resources.workers 5 --batch-size 7", 2,
         "batch_size = 7: must be at least 10"),
    Case("workers without CPUs", nothing,
         "digits --method sgd --resources.executor ray --resources.workers 2 --resources.driver-cpus 0", 2,
         "resources.workers = 2: each needs CPUs"),
    Case("workers without Ray", nothing, "digits --method sgd --resources.workers 2", 2,
         "workers = 2 … needs Ray"),
]  # fmt: skip

TABLE = [*CONFIG, *DATA, *CHECKPOINTS, *PLACES, *CODE, *RESOURCES]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the job "digits" with two checkpoints."""
    path = tmp_path_factory.mktemp("past")
    _, config = parse("", "digits", [*FLAGS["digits"], "--storage.path", str(path)])
    driver = local_driver(config)
    driver.prepare()
    assert [record.round for record in driver.rounds("")] == [1, 2]
    driver.close()
    return path / "one"


@pytest.fixture
def call(run_job: RunJob, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a row's job in this process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module in ("mine", "broken", "leaving"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    def call(argv: str) -> Any:
        job, *flags = shlex.split(argv.format(port=free_port()))
        return run_job(PROGRAM.get(job, job), *FLAGS[job], *flags)

    return call


def contents(folder: Path) -> dict[str, str]:
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
def test_bad_input(case: Case, call: Call, past: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, past)
    case.made(bench)
    before = contents(tmp_path)
    outcome = call(case.argv)
    line = the_line(outcome)
    for words in case.says.split(" … "):
        assert words in line
    assert outcome.code == case.code
    assert "geheim" not in outcome.err
    assert not bench.mark.exists()
    assert contents(tmp_path) == before


def the_line(outcome: Any) -> str:
    """The error: it comes last, once, without a traceback; no round was done, there is no result."""
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] == lines[-1], outcome.err
    assert not any(line.startswith(("round ", "Traceback")) for line in lines), outcome.err
    assert outcome.out == ""
    return errors[0]


def test_the_pickles_would_run_code(tmp_path: Path) -> None:
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
    made: Make
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
    Fine("one that can't be decoded, allowed", parquet(one_row(photo(17)[:200])),
         "shards --data.max-undecodable 1", 24),
    Fine("one file without rows", each(parquet(), empty_file), "parquet", 24),
    Fine("link to a set", each(parquet(), link("other", "set")), "parquet --data.path other", 24),
    Fine("more actors than exits", nothing, "digits --resources.actors 100000", 16),
    Fine("batch of more than there are", nothing, "digits --batch-size 1000000000000", 16),
    Fine("seed beyond 64 bits", nothing, "digits --seed 99999999999999999999999", 16),
    Fine("a flag twice: the last counts", nothing, "digits --rounds 9 --rounds 1", 16),
    Fine("resume where nothing is", nothing, RESUME, 16),
    Fine("resume past a damaged one", newest(cut(0.5)), RESUME, 16),
    Fine("network of one's own", networks, OWN + "good", 16),
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", FINE, ids=lambda case: case.name)
def test_what_looks_odd_and_is_fine(case: Fine, call: Call, past: Path, tmp_path: Path) -> None:
    case.made(Bench(tmp_path, past))
    outcome = call(f"{case.argv} --storage.name {'one' if 'resume' in case.argv else 'fine'}")
    assert outcome.code == 0, outcome.err
    assert f"{case.images} training" in outcome.err
    assert all(0 <= accuracy <= 1 for accuracy in outcome.result["test_accuracy"])
    assert Path(outcome.result["checkpoint"]).is_file()


def test_what_only_root_may_read(call: Call, tmp_path: Path) -> None:
    """Permissions do not bind root, who then trains on the file; for others it is an error like any other."""
    each(parquet(), unreadable("set/train-00000.parquet"))(Bench(tmp_path, tmp_path))
    outcome = call("parquet")
    if os.geteuid() == 0:
        assert outcome.code == 0, outcome.err
    else:
        assert outcome.code == 2
        assert "train-00000.parquet" in the_line(outcome) and "Permission denied" in the_line(outcome)


def test_links_in_the_runs_folder_are_not_written_through(call: Call, tmp_path: Path) -> None:
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
