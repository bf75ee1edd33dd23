"""A set of large images as Parquet shards that are quick to read and decode: scaled once, not every epoch."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from raygf.cli import command_with, interruptible, parse_flags
from raygf.compute import generator
from raygf.config.fields import Limits, Section, local_path
from raygf.config.run import Count, Name, Natural, Pixels
from raygf.data.base import digest_of, permutation
from raygf.data.load import find_folders, find_shards
from raygf.data.pixels import decode_tensor
from raygf.data.stores import FolderStore, Part
from raygf.errors import DataError, RunFailed, StorageError, one_line

ROW_GROUP = 100
"""Images that are read at a time: 3 MB at 256 pixels."""


@dataclass(frozen=True)
class PrepareConfig(Section):
    """Which images, and how they are stored."""

    path: Name
    """Folder of the images: train/CLASS/*.JPEG and val/CLASS/*.JPEG, or Parquet files train*, val*, test*."""
    out: Name
    """Folder for the shards: a new one, or one begun with the same settings."""
    short_side: Pixels | None = None
    """Scale images down to this many pixels on the shorter side. Those that have no more are kept byte for
    byte; by default all are."""
    quality: Annotated[int, Limits(1, 100)] = 90
    """Of the JPEGs that scaled images become, from 1 to 100."""
    shard_images: Count = 5000
    """Images a file. One that was not finished is begun anew after an interruption."""
    processes: Annotated[int, Limits(0, 10_000)] | None = None
    """Worker processes; by default one for every CPU, with 0 this one does it all."""
    max_undecodable: Natural = 0
    """Images that may be left out because they can't be decoded."""


def prepare_job(argv: Sequence[str]) -> dict[str, Any]:
    """Prepare the images that the flags ``argv`` name; a KeyboardInterrupt has the command that continues."""
    config = parse_flags(PrepareConfig, "Write images as Parquet shards, scaled down if asked to.", argv)
    try:
        with interruptible():
            return prepare(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(command_with({})) from None


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Write the shards that are not there yet; returns a summary.

    They gather in a folder that is renamed when all are there: a part of a set is never taken for the whole.

    Raises:
        DataError: images are missing, more than allowed can't be decoded, or ``out`` is of other settings.
        StorageError: ``out`` can't be written.
        RunFailed: a worker process was lost.
    """
    started = time.perf_counter()
    folder, out = local_path("path", config.path), local_path("out", config.out)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; set --path to the folder of the images")
    in_files = any(folder.glob("train*.parquet")) or any(folder.glob("data/train*.parquet"))
    source = find_shards(folder) if in_files else find_folders(folder)
    splits = {"train": source.train, "val": source.val or source.test, "test": source.val and source.test}
    parts = {name: part for name, part in splits.items() if part is not None}
    shards, data = plan(parts, config.shard_images), out / "data"
    digests = [digest_of(np.array(source.class_names)), *(part.digest for part in parts.values())]
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, config, digests)
        place = data if data.is_dir() else out / "unfinished"
        place.mkdir(exist_ok=True)
        left_out = _write(shards, place, source.class_names, config)
        place.rename(data)
    except (OSError, pa.ArrowException) as error:
        cause = one_line(error, kind=False)
        raise StorageError(f"{out}: can't be written ({cause}); finished shards are kept") from error
    except RuntimeError as error:
        raise RunFailed(f"a worker process was lost ({one_line(error)}); lower --processes") from error
    images = {name: len(part) for name, part in parts.items()}
    seconds = round(time.perf_counter() - started, 3)
    return {"folder": str(out), "images": images, "left_out": left_out, "seconds": seconds}


def _claim(out: Path, config: PrepareConfig, digests: list[str]) -> None:
    """Have a file in ``out`` name the settings; DataError if it was begun with others, or is not empty."""
    settings = {name: getattr(config, name) for name in ("short_side", "quality", "shard_images")}
    text, path = json.dumps({**settings, "digests": digests}), out / "prepare.json"
    if not path.exists() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty, and not of this job; choose another --out")
    begun = path.read_text(errors="replace") if path.exists() else ""
    if begun not in ("", text):
        raise DataError(f"{out}: was begun with {begun}, not {text}; give the same, or another --out")
    path.write_text(text)


def plan(parts: Mapping[str, Part], images: int) -> dict[str, Part]:
    """The shards of all splits by file name, of ``images`` each.

    Training images in class folders are shuffled, always alike: row groups, which are read whole, are to have
    many classes. Those in Parquet files keep their order.
    """
    shards: dict[str, Part] = {}
    for split, part in parts.items():
        if split == "train" and isinstance(part.store, FolderStore):
            part = part.take(permutation(len(part), generator(0, "prepare")))
        names = f"{split}-{{:05d}}-of-{-(-len(part) // images):05d}.parquet"
        shards |= {names.format(number): piece for number, piece in enumerate(_pieces(part, images))}
    return shards


def _pieces(part: Part, size: int) -> list[Part]:
    return [part.take(some) for some in np.split(np.arange(len(part)), range(size, len(part), size))]


def _write(shards: Mapping[str, Part], place: Path, names: Sequence[str], config: PrepareConfig) -> int:
    """Write those ``shards`` that are not in ``place``; the number of images that all of them lack."""
    rest = {name: _pieces(part, ROW_GROUP) for name, part in shards.items() if not (place / name).is_file()}
    done = {name: pq.read_metadata(place / name).num_rows for name in shards if name not in rest}
    finished = sum(len(shards[name]) for name in done)
    left_out: int = finished - sum(done.values())
    count = (os.cpu_count() or 1) if config.processes is None else config.processes
    results = iter(
        DataLoader(
            list(chain(*rest.values())),  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=partial(_row_group, config),
            num_workers=count,
            multiprocessing_context="fork" if count else None,
        )
    )
    console = Console(stderr=True, soft_wrap=True)
    columns = TextColumn("images"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(map(len, shards.values())), completed=finished)
        for name, groups in rest.items():
            with _shard(place / name, names) as writer:
                for images, labels, faults, error in islice(results, len(groups)):
                    left_out += len(faults)
                    for fault in faults:
                        console.print(f"{fault}; it is left out", markup=False, highlight=False)
                    if faults and left_out > (allowed := config.max_undecodable):
                        error = f"{left_out} image(s) can't be decoded; raise --max-undecodable {allowed}"
                    if error:
                        raise DataError(error)
                    writer.write_table(pa.table([images, labels], schema=writer.schema))
                    bar.advance(task, len(images) + len(faults))
            console.print(f"{name}: {len(shards[name])} images", markup=False, highlight=False)
    return left_out


@contextmanager
def _shard(path: Path, names: Sequence[str]) -> Iterator[pq.ParquetWriter]:
    """Writes a file that gets its name when it is whole, with ``names`` of classes as on the hub."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())], metadata)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        # Without compression: encoded images can't be compressed further.
        with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
            yield writer
        os.fsync(file.fileno())
    part.rename(path)


def _row_group(config: PrepareConfig, part: Part) -> tuple[list[bytes], list[int], list[str], str]:
    """The images of ``part`` as stored, their labels, where others are and why they can't be decoded.

    Last, why none can be read: a text, for an error would change on its way out of a worker.
    """
    images, labels, faults = [], [], []
    try:
        for (where, file), label in zip(part.files(), part.labels.tolist(), strict=True):
            try:
                if file is None:
                    raise ValueError("there are no image bytes; images must be stored inside the file")
                images.append(prepare_image(file, config.short_side, config.quality))
                labels.append(label)
            except ValueError as error:
                faults.append(f"{where}: {error}")
    except DataError as error:
        return [], [], [], str(error)
    return images, labels, faults, ""


def prepare_image(file: NDArray[np.uint8], short_side: int | None, quality: int) -> bytes:
    """An image file as it is stored: as it is, or a JPEG of ``quality`` with its shorter side scaled down.

    ``file``: uint8 (bytes,), writable; it is kept, but decoded as a check, if its shorter side has no more
    than ``short_side``, or this is None.

    Raises ValueError: the bytes are no whole image.
    """
    image = None if short_side is None else _large_jpeg(file.tobytes(), short_side)
    if image is None:
        pixels = decode_tensor(file)
        if short_side is None or min(pixels.shape[1:]) <= short_side:
            return file.tobytes()
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = (short_side or 0) / min(image.size)
    scaled, size = io.BytesIO(), (round(image.width * scale), round(image.height * scale))
    image.resize(size, Image.Resampling.LANCZOS).save(scaled, "JPEG", quality=quality)
    return scaled.getvalue()


def _large_jpeg(file: bytes, short_side: int) -> Image.Image | None:
    """The JPEG, grey or RGB, if its shorter side is above ``short_side``; None if it is damaged, or none.

    libjpeg scales it on the way, which costs little, to no less than twice the size: Lanczos does the rest.
    """
    with suppress(Exception), Image.open(io.BytesIO(file), formats=["JPEG"]) as image:  # errors of many kinds
        if min(image.size) > short_side:
            image.draft(None, (2 * short_side, 2 * short_side))
            return image.copy() if image.mode == "L" else image.convert("RGB")
    return None
