"""Training images per second: raygf's streaming data sets against torchvision's ImageFolder with DataLoader.

    python benchmarks/images.py
    python benchmarks/images.py --path /data/imagenet/train        # class folders, or Parquet shards
    python benchmarks/images.py --path /data/small-photographs --scale-up 375

The same encoded images, the same transforms (RandomResizedCrop 224, flip, normalise), the same number of
worker processes, float32 batches on the device in its layout; run in turn. Without --path the images are
made up: JPEGs of ImageNet's usual size. "ImageFolder" is torchvision as in its documentation: Pillow
decodes, every image is normalised by its worker. "ImageFolder, tuned" decodes to tensors and normalises whole
batches on the device, as raygf does. "prepared" are shards that jobs/prepare.py has made of the same images.
Bars: raygf's shards at least as fast as ImageFolder; the prepared ones twice as fast as ImageFolder, tuned.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from timing import Timing, interleave, machine
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from raygf.compute import Compute, resolve_compute
from raygf.config.run import ComputeConfig, DataConfig
from raygf.data.base import Batch, Dataset, Normaliser
from raygf.data.load import load_data
from raygf.data.pixels import decode_tensor, training_view
from raygf.data.prepare import PrepareConfig, prepare
from raygf.data.stores import Part, index_folder, index_shards
from raygf.data.streaming import STATISTICS

CROP = 224
ROW_GROUP = 100
CLASSES = 10
BAR, BAR_PREPARED = 1.0, 2.0
SHARDS, FOLDER, PREPARED = "raygf shards", "raygf imagefolder", "raygf shards, prepared"
PLAIN, TUNED = "ImageFolder", "ImageFolder, tuned"


@dataclass(frozen=True)
class Options:
    """What to time."""

    path: str = ""
    """Folder with class folders or train*.parquet; empty: images are made up."""
    scale_up: int = 0
    """Scale smaller images up to this many pixels on the shorter side, as JPEGs of quality 98."""
    short_side: int = 256
    """Pixels on the shorter side of the prepared images."""
    images: int = 1000
    """Images a pass, at most as many as there are."""
    workers: int = 2
    """Worker processes of each."""
    batch: int = 64
    """Images a batch."""
    repeats: int = 7
    """Counted passes of each, after one that is not counted."""


def main(options: Options) -> None:
    """Time all pipelines in turn; print images per second and the time of every stage."""
    torch.set_num_threads(1)  # the workers are to have the processor
    compute = resolve_compute(ComputeConfig())
    with tempfile.TemporaryDirectory() as folder:
        images = [(scaled_up(file, options.scale_up), label) for file, label in encoded_images(options)]
        count = write_both(images, Path(folder))
        prepare(PrepareConfig(folder, f"{folder}/{PREPARED}", options.short_side))
        pipelines = make_pipelines(folder, options, compute)
        programs = {name: _pass(batches, count) for name, batches in pipelines.items()}
        timings = interleave(programs, options.repeats)
        (prepared,) = Path(folder, PREPARED, "data").glob("train*.parquet")
        stages = {
            SHARDS: raygf_stages(Path(folder, "train-00000.parquet"), compute),
            PREPARED: raygf_stages(prepared, compute),
            PLAIN: torchvision_stages(Path(folder), compute),
        }
    report(timings, stages, describe(images), options, compute)


def make_pipelines(
    folder: str, options: Options, compute: Compute
) -> dict[str, Callable[[], Iterable[Batch]]]:
    """By name, a function that yields the batches of one more epoch."""
    places = {SHARDS: folder, FOLDER: folder, PREPARED: f"{folder}/{PREPARED}"}
    sources = {FOLDER: "imagefolder"}
    data = {name: _dataset(places[name], sources.get(name, "shards"), options.workers) for name in places}
    ours = {name: each.open(compute, options.batch, 1) for name, each in data.items()}
    epochs = iter(range(10**9))
    pipelines: dict[str, Callable[[], Iterable[Batch]]] = {
        name: (lambda source=source: source.train(0, next(epochs)))  # type: ignore[misc]
        for name, source in ours.items()
    }
    plain = _loader(ImageFolder(f"{folder}/train", plain_transform()), options)
    tuned = _loader(ImageFolder(f"{folder}/train", tuned_transform(), loader=decoded_file), options)
    normalise = Normaliser(STATISTICS, compute)
    pipelines[PLAIN] = lambda: (_moved(batch, compute) for batch in plain)
    pipelines[TUNED] = lambda: (
        (normalise(images.to(compute.device)), labels.to(compute.device)) for images, labels in tuned
    )
    return pipelines


def plain_transform() -> v2.Compose:
    """The usual training transform of ImageNet, for Pillow's images."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(CROP, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(STATISTICS.mean, STATISTICS.std),
        ]
    )


def tuned_transform() -> v2.Compose:
    """The same for tensors, without what can be done for a whole batch."""
    return v2.Compose([v2.RandomResizedCrop(CROP, antialias=True), v2.RandomHorizontalFlip()])


def decoded_file(path: str) -> torch.Tensor:
    """An image file decoded by torchvision: uint8 (3, H, W)."""
    from torchvision.io import ImageReadMode, decode_image, read_file

    pixels: torch.Tensor = decode_image(read_file(path), ImageReadMode.RGB)
    return pixels


def encoded_images(options: Options) -> list[tuple[bytes, int]]:
    """Image files and their labels."""
    if not options.path:
        return [(made_up_jpeg(number), number % CLASSES) for number in range(options.images)]
    folder = Path(options.path).expanduser()
    shards = sorted(folder.glob("train*.parquet"))
    store = index_shards(shards) if shards else index_folder(str(folder), ".")
    part = Part.of(store).take(np.arange(min(options.images, len(store.labels))))
    files = zip(part.files(), part.labels.tolist(), strict=True)
    return [(file.tobytes(), label) for (_, file), label in files if file is not None]


def scaled_up(file: bytes, short_side: int) -> bytes:
    """The image file, or a JPEG scaled up if its shorter side has less pixels."""
    with Image.open(io.BytesIO(file)) as image:
        scale = short_side / min(image.size)
        if scale <= 1:
            return file
        size, large = (round(image.width * scale), round(image.height * scale)), io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(large, "JPEG", quality=98)
    return large.getvalue()


def describe(images: list[tuple[bytes, int]]) -> dict[str, int]:
    """How many there are, and their mean width, height and kB."""
    sizes = [(*Image.open(io.BytesIO(file)).size, len(file) / 1e3) for file, _ in images]
    width, height, size = (round(mean) for mean in np.mean(sizes, axis=0).tolist())
    return {"count": len(images), "width": width, "height": height, "kB": size}


def made_up_jpeg(seed: int) -> bytes:
    """A photograph-like image of 500x375 or 375x500 pixels, some 100 kB: blobs, edges and grain."""
    rng = np.random.default_rng(seed)
    size = (500, 375) if seed % 4 else (375, 500)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).resize(size)
    grain = rng.normal(0, 9, (size[1], size[0], 1))
    pixels = 0.75 * np.asarray(coarse) + 0.25 * np.asarray(fine) + grain
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=93)
    return file.getvalue()


def write_both(images: list[tuple[bytes, int]], folder: Path) -> int:
    """The ``images`` as class folders and as Parquet shards, to train on; one more as the test set."""
    for split, part in (("train", images), ("val", images[:1])):
        for number, (file, label) in enumerate(part):
            path = folder / split / f"{label:04d}" / f"{number:06d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file)
        rows = pa.array([{"bytes": file, "path": ""} for file, _ in part])
        table = pa.table({"image": rows, "label": pa.array([label for _, label in part], pa.int64())})
        names = ",".join(str(label) for label in range(1 + max(label for _, label in images)))
        table = table.replace_schema_metadata({"class_names": names})
        pq.write_table(table, folder / f"{split}-00000.parquet", row_group_size=ROW_GROUP)
    return len(images)


def raygf_stages(shard: Path, compute: Compute) -> dict[str, float]:
    """Milliseconds per image in one process, for every stage of reading a shard."""
    import random

    store = index_shards([shard])
    reader, watch, stream = store.open(), Stopwatch(), random.Random(0)
    count = min(200, len(store.labels))
    slot = torch.empty(count, CROP, CROP, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    normalise = Normaliser(STATISTICS, compute)
    reader.read(0, 0)  # imports what it needs
    reader.leave([0])
    for number in range(count):
        with watch("read"):
            file = reader.read(number, int(store.units[number]))
        assert file is not None
        with watch("decode"):
            image = decode_tensor(file)
        with watch("transform"):
            view = training_view(image, CROP, True, stream)
        with watch("collate"):
            slot[number].copy_(view)
    with watch("transfer"):
        normalise(slot.to(compute.device))
        _synchronise()
    return watch.per_image(count)


def torchvision_stages(folder: Path, compute: Compute) -> dict[str, float]:
    """The same of ImageFolder; normalising is part of the transform there."""
    files = sorted((folder / "train").rglob("*.JPEG"))[:200]
    transform, watch, views = plain_transform(), Stopwatch(), []
    for path in files:
        with watch("read"):
            data = path.read_bytes()
        with watch("decode"):
            image = Image.open(io.BytesIO(data)).convert("RGB")
        with watch("transform"):
            views.append((transform(image), 0))
    with watch("collate"):
        batch = default_collate(views)
    with watch("transfer"):
        _moved(batch, compute)
        _synchronise()
    return watch.per_image(len(files))


class Stopwatch:
    """Adds up the time spent in stages."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body of the ``with`` block."""
        started = time.perf_counter()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - started

    def per_image(self, count: int) -> dict[str, float]:
        """Milliseconds per image, for every stage."""
        return {stage: round(seconds * 1e3 / count, 4) for stage, seconds in self._seconds.items()}


def report(
    timings: dict[str, Timing],
    stages: dict[str, dict[str, float]],
    images: dict[str, int],
    options: Options,
    compute: Compute,
) -> None:
    """Two tables, and last, one line of JSON."""
    console, base, prepared = Console(width=110), timings[SHARDS].median, timings[PREPARED].median
    count, size = images["count"], "{width}x{height} pixels, {kB} kB (means)".format(**images)
    title = f"{count} images a pass, {size}, {options.workers} workers, on the {compute.device}"
    table = Table("", "images/s", "slowest", "fastest", "shards ÷ this", "prepared ÷ this", title=title)
    for name, timing in timings.items():
        rates = [f"{count / seconds:.0f}" for seconds in (timing.median, *reversed(timing.spread))]
        table.add_row(name, *rates, f"{timing.median / base:.2f}", f"{timing.median / prepared:.2f}")
    console.print(table)
    parts = Table("ms an image, in one process", *stages[SHARDS], "sum")
    for name, stage in stages.items():
        parts.add_row(name, *(f"{value:.3f}" for value in (*stage.values(), sum(stage.values()))))
    console.print(parts)
    result: dict[str, Any] = {
        "images_per_s": {name: round(count / timing.median, 1) for name, timing in timings.items()},
        "ratio": round(timings[PLAIN].median / base, 3),
        "ratio_to_tuned": round(timings[TUNED].median / base, 3),
        "ratio_prepared_to_tuned": round(timings[TUNED].median / prepared, 3),
        "bar": BAR,
        "bar_prepared": BAR_PREPARED,
        "ms_per_image": stages,
        "images": images,
        "prepared_to": options.short_side,
        "workers": options.workers,
        "batch": options.batch,
        "machine": machine(),
    }
    print(json.dumps(result), flush=True)


def _dataset(folder: str, source: str, workers: int) -> Dataset:
    return load_data(DataConfig(source=source, path=folder, crop=CROP, workers=workers), seed=0)  # type: ignore[arg-type]


def _loader(dataset: ImageFolder, options: Options) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        options.batch,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )


def _moved(batch: Batch, compute: Compute) -> Batch:
    images, labels = batch
    return images.to(compute.device, memory_format=compute.layout), labels.to(compute.device)


def _pass(batches: Callable[[], Iterable[Batch]], count: int) -> Callable[[], None]:
    def run() -> None:
        seen = sum(len(labels) for _, labels in batches())
        assert seen == count, f"{seen} images instead of {count}"

    return run


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
