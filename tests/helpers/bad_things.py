"""What the tables of bad input are made of: damaged data sets, checkpoints, databases, networks.

A maker is called with a bench and puts things into its folder, in which the job then runs.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sqlite3
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    def mark(self) -> Path:
        """The file that is there if something was executed."""
        return self.folder / "executed"


Make = Callable[[Bench], object]
Row = tuple[bytes | None, int | None]
"""An encoded image and its label."""


class Bomb:
    """Leaves ``mark`` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


# Files ------------------------------------------------------------------------------------------------------


def nothing(bench: Bench) -> None:
    """The flags alone are bad."""


def each(*makes: Make) -> Make:
    """One after the other."""
    return lambda bench: [make(bench) for make in makes]


def file(name: str, content: str | bytes = "in the way") -> Make:
    """A file."""

    def make(bench: Bench) -> None:
        path = bench.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def folder(name: str) -> Make:
    """An empty folder."""
    return lambda bench: (bench.folder / name).mkdir(parents=True)


def gone(name: str) -> Make:
    """Without the file ``name``."""
    return lambda bench: (bench.folder / name).unlink()


def link(name: str, target: str) -> Make:
    """A symbolic link, whether or not there is something where it points."""

    def make(bench: Bench) -> None:
        path = bench.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(bench.folder / target)

    return make


def damage(name: str, change: Callable[[bytes], bytes]) -> Make:
    """``change`` done to a file that is there."""

    def make(bench: Bench) -> None:
        path = bench.folder / name
        path.write_bytes(change(path.read_bytes()))

    return make


def cut(share: float) -> Callable[[bytes], bytes]:
    """The first ``share`` of the bytes."""
    return lambda content: content[: int(share * len(content))]


def flip(place: int | bytes) -> Callable[[bytes], bytes]:
    """One bit flipped in the byte ``place``, or in the first one of the text ``place``."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[place if isinstance(place, int) else content.index(place)] ^= 0x10
        return bytes(changed)

    return change


def replaced(content: bytes) -> Callable[[bytes], bytes]:
    """Other bytes in their place."""
    return lambda _: content


def pickled(name: str) -> Make:
    """A pickle that runs code when it is loaded."""
    return lambda bench: file(name, pickle.dumps(Bomb(bench.mark)))(bench)


# Images -----------------------------------------------------------------------------------------------------


def photo(seed: int, mode: str = "RGB", size: int = 8, format: str = "JPEG") -> bytes:
    """An image file of ``size`` pixels a side."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, format)
    return stream.getvalue()


def rows(count: int, **kind: Any) -> list[Row]:
    """Images with the labels 0 and 1 in turn."""
    return [(photo(number, **kind), number % 2) for number in range(count)]


def one_row(image: bytes | None = b"", label: int | None = -9) -> list[Row]:
    """24 rows, of which number 17 has this image, or this label."""
    changed = rows(24)
    kept, known = changed[17]
    changed[17] = (kept if image == b"" else image, known if label == -9 else label)
    return changed


def parquet(
    train: Sequence[Row] | None = None,
    test: Sequence[Row] | None = None,
    image: str = "image",
    label: str = "label",
    kind: pa.DataType | None = None,
    names: bytes | None = b"cat,dog",
) -> Make:
    """The set ``set`` in two Parquet files; ``kind`` is the type of the labels."""

    def make(bench: Bench) -> None:
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


def class_folders(train: Sequence[Row] | None = None) -> Make:
    """The set ``set`` as class folders."""

    def make(bench: Bench) -> None:
        for split, part in (("train", rows(24) if train is None else train), ("val", rows(8))):
            for number, (data, label) in enumerate(part):
                name = ("cat", "dog")[label or 0]
                file(f"set/{split}/{name}/{number:02d}.jpg", data or b"")(bench)

    return make


def copied(name: str, copy: str) -> Make:
    """A second copy of a file."""
    return lambda bench: shutil.copy(bench.folder / name, bench.folder / copy)


def empty_file(bench: Bench) -> None:
    """A training file more, without rows."""
    whole = pq.read_table(bench.folder / "set" / "train-00000.parquet")
    pq.write_table(whole.slice(0, 0), bench.folder / "set" / "train-1.parquet")


def cifar_archive(bench: Bench) -> None:
    """CIFAR-10's folder whose first batch is a pickle that runs code."""
    base = "set/cifar-10-batches-py"
    for name in (*(f"data_batch_{number}" for number in range(2, 6)), "test_batch", "batches.meta"):
        file(f"{base}/{name}", "made up")(bench)
    pickled(f"{base}/data_batch_1")(bench)


# Checkpoints ------------------------------------------------------------------------------------------------


def past_run(bench: Bench) -> None:
    """The past run, as ``runs/one``."""
    shutil.copytree(bench.past, bench.folder / "runs" / "one")


def newest(change: Callable[[bytes], bytes]) -> Make:
    """The past run with its newest checkpoint changed."""
    return each(past_run, damage(NEWEST, change))


def only(change: Callable[[bytes], bytes]) -> Make:
    """The past run with a single checkpoint, and that changed."""
    return each(newest(change), lambda bench: (bench.folder / "runs/one/round-000001.npz").unlink())


def edited(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Make:
    """The past run whose newest checkpoint was written by a program that knows the format.

    ``change`` gets its description and its arrays, the weights as "vector", and may change both.
    """

    def make(bench: Bench) -> None:
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


def array(name: str, change: Callable[[Any], Any]) -> Make:
    """As ``edited``, with one array changed."""
    return edited(lambda _, arrays: arrays.update({name: change(arrays[name])}))


def meta(**values: Any) -> Make:
    """As ``edited``, with some values of the description changed."""
    return edited(lambda known, _: known.update(values))


def other_format(content: bytes) -> bytes:
    """Of the format that may come after this one."""
    return repacked(content, lambda known: {**known, "format": 2})


def repacked(content: bytes, change: Callable[[dict[str, Any]], dict[str, Any]], **packing: int) -> bytes:
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


def bloated(content: bytes) -> bytes:
    """With a member that is a thousand times as large once it is unpacked: 30 MB of zeros."""
    stream = io.BytesIO(repacked(content, dict, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("buffer/zeros.npy", bytes(30 * 10**6))
    return stream.getvalue()


def boastful(content: bytes) -> bytes:
    """Whose weights claim to be a petabyte."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (250000000000000,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            claim = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
            new.writestr(name, claim if name == "vector.npy" else old.read(name))
    return stream.getvalue()


def object_array(bench: Bench) -> None:
    """The past run whose weights are an object array, with a pickle in it."""
    past_run(bench)
    stream = io.BytesIO()
    np.savez(stream, meta=np.array("{}"), vector=np.array([Bomb(bench.mark)], dtype=object))
    (bench.folder / NEWEST).write_bytes(stream.getvalue())


# Databases, networks, weights -------------------------------------------------------------------------------


def database(*statements: str) -> Make:
    """A SQLite database ``other.db`` that is not MLflow's."""

    def make(bench: Bench) -> None:
        with sqlite3.connect(bench.folder / "other.db") as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return make


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


def networks(bench: Bench) -> None:
    """The module ``mine`` with functions that return networks and methods, good and bad."""
    file("mine.py", NETWORKS)(bench)
    file("broken.py", "def net(spec:\n")(bench)
    file("leaving.py", "import sys\nsys.exit(0)\n")(bench)


def weights(change: Callable[[dict[str, Any]], object] = dict) -> Make:
    """``weights.pt``: torchvision's squeezenet1_1 for two classes, changed."""

    def make(bench: Bench) -> None:
        from torchvision.models import get_model

        state = get_model("squeezenet1_1", weights=None, num_classes=2).state_dict()
        change(state)
        torch.save(state, bench.folder / "weights.pt")

    return make


def torch_pickle(name: str) -> Make:
    """What ``torch.save`` makes of an object that runs code when it is loaded."""
    return lambda bench: torch.save(Bomb(bench.mark), bench.folder / name)


def unreadable(name: str) -> Make:
    """A file that nobody but root may read."""
    return lambda bench: (bench.folder / name).chmod(0)
