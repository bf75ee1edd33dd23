"""Every network with every method: two rounds on a few hundred real images, and a table of the losses.

    python benchmarks/pairs.py                                     # scikit-learn's digits, enlarged
    python benchmarks/pairs.py --data-path /data/cifar10           # the first images of a Parquet set
    python benchmarks/pairs.py --networks msdnet --methods metagf sgd+kd --results runs/pairs.jsonl

A cell has the training loss, mean over exits, in round 1 and in round 2; with "+kd" it is the distilled one.
The five networks of the paper have its weight decay, loss coefficients and segments. All methods start from
the same weights, so those on expected gradients share the exits' trainings of round 1. With --results every
pair is written to that file when it is done, and not trained again when the program is restarted. Bar: no
pair fails; else the exit code is 1.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from few_images import few_images
from pair_bench import KD, METHODS, NETWORKS, ROUNDS, Bench, Pair, loss_table
from timing import machine

from raygf.config.run import ModelConfig
from raygf.errors import RaygfError
from raygf.methods.registry import check_method

Known = dict[tuple[str, str], Pair]


@dataclass(frozen=True)
class Options:
    """What to train."""

    data_path: str = ""
    """Folder with train*.parquet of small images; empty: scikit-learn's digits."""
    images: int = 200
    """Training images: the first ones."""
    image_size: int = 32
    """Pixels a side; images are scaled."""
    batch: int = 50
    """Images a step."""
    lr: float = 0.01
    """Learning rate in round 1: a tenth of the paper's, for there are few steps."""
    networks: tuple[str, ...] = NETWORKS
    """Networks, as --model.name takes them."""
    methods: tuple[str, ...] = METHODS
    """Methods, as --method takes them; with "+kd": with distillation."""
    results: str = ""
    """File that keeps what has been trained, a line a pair; empty: nothing is kept."""

    @property
    def settings(self) -> list[Any]:
        """What the losses depend on."""
        return [self.data_path, self.images, self.image_size, self.batch, self.lr]


def main(options: Options) -> int:
    """Train all pairs that are not in the results yet; print the table. Returns the exit code."""
    torch.set_num_threads(1)
    try:
        for method in options.methods:
            check_method(method.removesuffix(KD))
        known = train_missing(options, read_results(options))
    except RaygfError as error:  # a wrong name or folder, say
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    pairs = [known[network, method] for network in options.networks for method in options.methods]
    return report(pairs, options)


def train_missing(options: Options, known: Known) -> Known:
    """``known`` and all pairs that are not in it; each network is built once."""
    data = few_images(options.data_path, options.images, options.image_size)
    found = dict(known)
    for network in options.networks:
        missing = [method for method in options.methods if (network, method) not in found]
        if not missing:
            continue
        bench = Bench(ModelConfig(network), data, options.batch, options.lr)
        for method in missing:
            pair = train_pair(bench, network, method)
            found[network, method] = pair
            keep(pair, options)
            said = f"{network}  {method}  {pair}  {pair.seconds:.1f} s  {pair.error}"
            print(said.rstrip(), file=sys.stderr, flush=True)
    return found


def train_pair(bench: Bench, network: str, method: str) -> Pair:
    """Train; an error is part of the answer."""
    started = time.process_time()
    losses: tuple[float, ...] = ()
    error = ""
    try:
        losses = bench.train(method)
    except Exception as exception:
        error = f"{type(exception).__name__}: {exception}"
    return Pair(network, method, losses, round(time.process_time() - started, 2), error)


def read_results(options: Options) -> Known:
    """The pairs that were trained with these settings without an error."""
    if not options.results or not Path(options.results).exists():
        return {}
    lines = [json.loads(line) for line in Path(options.results).read_text().splitlines()]
    pairs = [Pair(**line["pair"]) for line in lines if line["settings"] == options.settings]
    return {(p.network, p.method): replace(p, losses=tuple(p.losses)) for p in pairs if not p.error}


def keep(pair: Pair, options: Options) -> None:
    """Add ``pair`` to the results."""
    if options.results:
        Path(options.results).parent.mkdir(parents=True, exist_ok=True)
        with Path(options.results).open("a") as file:
            file.write(json.dumps({"settings": options.settings, "pair": asdict(pair)}) + "\n")


def report(pairs: list[Pair], options: Options) -> int:
    """The table, and last, one line of JSON."""
    print(loss_table(pairs))
    failed = [pair for pair in pairs if pair.error]
    for pair in failed:
        print(f"{pair.network}, {pair.method}: {pair.error}")
    result = {
        "pairs": len(pairs),
        "failed": [[pair.network, pair.method] for pair in failed],
        "seconds": round(sum(pair.seconds for pair in pairs), 1),
        "images": options.images,
        "image_size": options.image_size,
        "batch": options.batch,
        "lr": options.lr,
        "rounds": ROUNDS,
        "losses": {f"{pair.network} {pair.method}": pair.losses for pair in pairs},
        "machine": machine(),
    }
    print(json.dumps(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
