"""What the tables of bad input are made of: damaged data sets, checkpoints, databases, networks.

A maker is called with a bench and puts things into its folder, in which the job then runs.
"""

import io
import json
import pickle
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from raygf.storage.checkpoint import Checkpoint, load_checkpoint, write_archive
from raygf.training.network import NetworkState

NEWEST = "runs/one/round-000002.npz"


@dataclass(frozen=True)
class Bench:
    """``folder``: where the job runs. ``past``: the folder of a run of two rounds, to be copied."""

    folder: Path
    past: Path

    @property
    def mark(self):
        """The file that is there if something was executed."""
        return self.folder / "executed"


class Bomb:
    """Leaves ``mark`` when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


# Files ------------------------------------------------------------------------------------------------------


def nothing(bench):
    """The flags alone are bad."""


def each(*makes):
    """One after the other."""
    return lambda bench: [make(bench) for make in makes]


def file(name, content="in the way"):
    """A file."""

    def make(bench):
        path = bench.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def folder(name):
    """An empty folder."""
    return lambda bench: (bench.folder / name).mkdir(parents=True)


def gone(name):
    """Without the file ``name``."""
    return lambda bench: (bench.folder / name).unlink()


def link(name, target):
    """A symbolic link, whether or not there is something where it points."""

    def make(bench):
        path = bench.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(bench.folder / target)

    return make


def damage(name, change):
    """``change`` done to a file that is there."""

    def make(bench):
        path = bench.folder / name
        path.write_bytes(change(path.read_bytes()))

    return make


def cut(share):
    """The first ``share`` of the bytes."""
    return lambda content: content[: int(share * len(content))]


def flip(place):
    """One bit flipped in the byte ``place``, or in the first one of the text ``place``."""

    def change(content):
        changed = bytearray(content)
        changed[place if isinstance(place, int) else content.index(place)] ^= 0x10
        return bytes(changed)

    return change


def replaced(content):
    """Other bytes in their place."""
    return lambda _: content


def pickled(name):
    """A pickle that runs code when it is loaded."""
    return lambda bench: file(name, pickle.dumps(Bomb(bench.mark)))(bench)


# Images -----------------------------------------------------------------------------------------------------


def photo(seed, mode="RGB", size=8, format="JPEG"):
    """An image file of ``size`` pixels a side."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, format)
    return stream.getvalue()


def rows(count, **kind):
    """Images with the labels 0 and 1 in turn."""
    return [(photo(number, **kind), number % 2) for number in range(count)]


def one_row(image=b"", label=-9):
    """24 rows, of which number 17 has this image, or this label."""
    changed = rows(24)
    kept, known = changed[17]
    changed[17] = (kept if image == b"" else image, known if label == -9 else label)
    return changed


def parquet(train=None, test=None, image="image", label="label", kind=None, names=b"cat,dog"):
    """The set ``set`` in two Parquet files; ``kind`` is the type of the labels."""

    def make(bench):
        (bench.folder / "set").mkdir(exist_ok=True)
        for split, part in (("train", rows(24) if train is None else train), ("test", test or rows(8))):
            images = pa.array(
                [{"bytes": data, "path": f"{number}.jpg"} for number, (data, _) in enumerate(part)],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            )
            labels = pa.array([value for _, value in part], pa.int64()).cast(kind or pa.int64())
            table = pa.table({image: images, label: labels})
            table = table.replace_schema_metadata({b"class_names": names} if names is not None else {})
            pq.write_table(table, bench.folder / "set" / f"{split}-00000.parquet")

    return make


def class_folders(train=None):
    """The set ``set`` as class folders."""

    def make(bench):
        for split, part in (("train", rows(24) if train is None else train), ("val", rows(8))):
            for number, (data, label) in enumerate(part):
                name = ("cat", "dog")[label or 0]
                file(f"set/{split}/{name}/{number:02d}.jpg", data or b"")(bench)

    return make


def empty_file(bench):
    """A training file more, without rows."""
    whole = pq.read_table(bench.folder / "set" / "train-00000.parquet")
    pq.write_table(whole.slice(0, 0), bench.folder / "set" / "train-1.parquet")


def cifar_archive(bench):
    """CIFAR-10's folder whose first batch is a pickle that runs code."""
    base = "set/cifar-10-batches-py"
    for name in (*(f"data_batch_{number}" for number in range(2, 6)), "test_batch", "batches.meta"):
        file(f"{base}/{name}", "made up")(bench)
    pickled(f"{base}/data_batch_1")(bench)


# Checkpoints ------------------------------------------------------------------------------------------------


def past_run(bench):
    """The past run, as ``runs/one``."""
    shutil.copytree(bench.past, bench.folder / "runs" / "one")


def newest(change):
    """The past run with its newest checkpoint changed."""
    return each(past_run, damage(NEWEST, change))


def only(change):
    """The past run with a single checkpoint, and that changed."""
    return each(newest(change), lambda bench: (bench.folder / "runs/one/round-000001.npz").unlink())


def edited(change):
    """The past run whose newest checkpoint was written by a program that knows the format.

    ``change`` gets its description and its arrays, the weights as "vector", and may change both.
    """

    def make(bench):
        past_run(bench)
        path = bench.folder / NEWEST
        known = load_checkpoint(str(path))
        meta = json.loads(json.dumps(known.meta))
        arrays = {"vector": known.network.vector, **known.network.buffers, **known.method}
        change(meta, arrays)
        network = NetworkState(arrays["vector"], {name: arrays[name] for name in known.network.buffers})
        method = {name: arrays[name] for name in known.method}
        with path.open("wb") as stream:
            write_archive(stream, Checkpoint(meta["round"], network, method, meta))

    return make


def array(name, change):
    """As ``edited``, with one array changed."""
    return edited(lambda _, arrays: arrays.update({name: change(arrays[name])}))


def meta(**values):
    """As ``edited``, with some values of the description changed."""
    return edited(lambda known, _: known.update(values))


def other_format(content):
    """Of the format that may come after this one."""
    return repacked(content, lambda known: {**known, "format": 2})


def repacked(content, change, **packing):
    """The archive packed anew with another description."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", **packing) as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "meta.npy":
                text = json.dumps(change(json.loads(np.load(io.BytesIO(data)).item()))).encode()
                member = io.BytesIO()
                np.save(member, np.array(text))
                data = member.getvalue()
            new.writestr(name, data)
    return stream.getvalue()


def bloated(content):
    """With a member that is a thousand times as large once it is unpacked: 30 MB of zeros."""
    stream = io.BytesIO(repacked(content, dict, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("buffer/zeros.npy", bytes(30 * 10**6))
    return stream.getvalue()


def boastful(content):
    """Whose weights claim to be a petabyte."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (250000000000000,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            claim = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
            new.writestr(name, claim if name == "vector.npy" else old.read(name))
    return stream.getvalue()


def object_array(bench):
    """The past run whose weights are an object array, with a pickle in it."""
    past_run(bench)
    stream = io.BytesIO()
    np.savez(stream, meta=np.array("{}"), vector=np.array([Bomb(bench.mark)], dtype=object))
    (bench.folder / NEWEST).write_bytes(stream.getvalue())


# Databases, networks, weights -------------------------------------------------------------------------------


NETWORKS = """
import sys
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, dtype=torch.float32, answer=lambda logits: [logits]):
        super().__init__()
        self.linear = nn.Linear(64, 10, dtype=dtype)
        self.answer = answer

    def forward(self, images):
        return self.answer(self.linear(images.flatten(1).to(self.linear.weight.dtype)))


class Changing(Net):
    def forward(self, images):
        return super().forward(images)[0] if self.training else super().forward(images)


class Deaf(Net):
    def forward(self, images):
        return [torch.zeros(len(images), 10)]


def raises(spec):
    raise ValueError("no such\\nlayer")


good = lambda spec: Net()
leaves = lambda spec: sys.exit(0)
number = lambda spec: 7
tensor = lambda spec: Net(answer=lambda logits: logits)
classes = lambda spec: Net(answer=lambda logits: [logits[:, :3]])
empty = lambda spec: Net(answer=lambda logits: [])
double = lambda spec: Net(dtype=torch.float64)
changing = lambda spec: Changing()
frozen = lambda spec: Net().requires_grad_(False)
deaf = lambda spec: Deaf()

three_weights = lambda setting: lambda gramian: torch.ones(3)
raising_method = lambda setting: lambda gramian: 1 / 0
text_method = lambda setting: lambda gramian: "equal"
no_method = lambda setting: 3
"""


def networks(bench):
    """The module ``mine`` with functions that return networks and methods, good and bad."""
    file("mine.py", NETWORKS)(bench)
    file("broken.py", "def net(spec:\n")(bench)
    file("leaving.py", "import sys\nsys.exit(0)\n")(bench)


def weights(change=dict):
    """``weights.pt``: torchvision's squeezenet1_1 for two classes, changed."""

    def make(bench):
        from torchvision.models import get_model

        state = get_model("squeezenet1_1", weights=None, num_classes=2).state_dict()
        change(state)
        torch.save(state, bench.folder / "weights.pt")

    return make


def torch_pickle(name):
    """What ``torch.save`` makes of an object that runs code when it is loaded."""
    return lambda bench: torch.save(Bomb(bench.mark), bench.folder / name)


def unreadable(name):
    """A file that nobody but root may read."""
    return lambda bench: (bench.folder / name).chmod(0)
