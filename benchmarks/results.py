"""Makes the tables, figures and numbers of docs/results.md and README.md from docs/results/*.csv alone.

    python benchmarks/results.py                 # writes them
    python benchmarks/results.py --check         # exit code 1 if a page has something else

In a page, a table stands between ``<!-- table NAME -->`` and ``<!-- end -->``, and a number of the text is
followed by what it is, ``48.3<!-- vgg 1500 compute metagf mean -->``: network, training images, comparison,
method, and one of ``STATISTICS``; differences are seed by seed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from experiments import (
    ABLATIONS,
    ALL,
    COMPARISONS,
    JOINT,
    METHODS,
    NETWORKS,
    TRIAL_SEED,
    Experiment,
    Method,
    Plan,
    Row,
    at,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from paper import BUDGETS, ROUNDS, RUNS, read_rows

from raygf.evaluation.figures import legend_outside, new_figure, plain_axes, run_style, whole_numbers

Values = NDArray[np.float64]
TABLE = re.compile(r"<!-- table ([^>]+?) -->\n(.*?)<!-- end -->", re.S)
MEASURED_ENDS = "\n## How "
"""The heading after which a page has no results."""
NOT_MEASURED = r"```.*?```|`.*?`|Python ≥ [0-9.]+"
FIGURE = re.compile(r"\b(results_([\w-]+?)_(\d+)_(budget|progress|merge)\.png)")
NUMBER = re.compile(r"([-+−]?[0-9][0-9.]*)<!-- ([^>]+?) -->")


@dataclass(frozen=True)
class Options:
    """Where the results are, and the pages."""

    results: Path = Path("docs/results")
    """Folder of the files that benchmarks/paper.py writes."""
    pages: tuple[Path, ...] = (Path("docs/results.md"), Path("README.md"))
    """The pages."""
    images: Path = Path("docs/images")
    """Folder of the figures."""
    check: bool = False
    """Write nothing, compare."""


@dataclass(frozen=True)
class Cell:
    """The runs of one method in one comparison, by seed."""

    rows: Mapping[str, Row]

    def values(self, read: Callable[[Row], float]) -> Values:
        """``read`` of every seed's row, by ascending seed."""
        return np.array([read(self.rows[seed]) for seed in sorted(self.rows)])

    def ahead_of(self, other: Cell, read: Callable[[Row], float]) -> Values:
        """How far ``read`` is ahead of that of ``other``, of the seeds that both have."""
        both = sorted(self.rows.keys() & other.rows.keys())
        return np.array([read(self.rows[seed]) - read(other.rows[seed]) for seed in both])


def numbers(cell: str) -> list[float]:
    """What stands in one cell, one an exit."""
    return [float(part) for part in cell.split()]


def by_name(path: Path) -> dict[str, list[Row]]:
    """The lines of a file of results, by their run."""
    found: dict[str, list[Row]] = {}
    for line in read_rows(path):
        found.setdefault(line["name"], []).append(line)
    return found


def half(row: Row, budgets: Sequence[Row]) -> str:
    """The accuracy of the dearest of ``budgets`` that takes at most half of the network's operations."""
    most = numbers(row["operations"])[-1] / 2
    cheap = [line for line in budgets if float(line["operations"]) <= most]
    return max(cheap, key=lambda line: float(line["operations"]))["accuracy"] if cheap else "nan"


def head(*titles: str) -> str:
    """The first lines of a table; all columns but the first are numbers."""
    return f"| method | {' | '.join(titles)} |\n| --- |{' ---: |' * len(titles)}\n"


def percent(column: str, place: int | None = None) -> Callable[[Row], float]:
    """Reads an accuracy in percent: ``column``, or its number ``place`` where there is one an exit."""
    return lambda row: 100 * numbers(row[column])[place or 0]


STATISTICS: dict[str, Callable[[Row], float]] = {
    "mean": percent("test_mean"),
    "val": percent("val_mean"),
    "first": percent("test", 0),
    "last": percent("test", -1),
    "area": percent("area"),
    "half": percent("half"),
    "cheapest": lambda row: numbers(row["operations"])[0] / 1e6,
    "dearest": lambda row: numbers(row["operations"])[-1] / 1e6,
    "share": lambda row: 100 * numbers(row["operations"])[0] / numbers(row["operations"])[-1],
    "ece": lambda row: 100 * float(np.mean(numbers(row["ece"]))),
    "passes": lambda row: float(row["training_passes"]),
    "steps": lambda row: float(row["steps"]),
}
"""What a number may be, by its key.

In percent: test and validation accuracy, mean of the exits; test accuracy of the first and of the last one,
mean between the cheapest and the dearest budget, and with half of the whole network's operations; the first
exit's share of those; the expected calibration error, mean of the exits. Else: M operations of the first and
of the last exit, training passes, steps in sequence. "-sd": its spread over seeds; "-to-METHOD[@COMPARISON]":
ahead of it, "-sd-to-…" the spread of that.
"""
SIDE_BY_SIDE = "epochs", "compute", "steps"
"""Comparisons of a summary, unless it names others."""
VARIANTS = {"merging": ("metagf", ABLATIONS), "joint": ("sgd", JOINT)}
"""Tables of single settings: the method that they are compared with, and what differs from it."""


class Results:
    """All runs, by what they were for."""

    def __init__(self, folder: Path) -> None:
        self.budgets, self.rounds = by_name(folder / BUDGETS), by_name(folder / ROUNDS)
        self.rows = [
            {**row, "half": half(row, self.budgets[row["name"]])} for row in read_rows(folder / RUNS)
        ]

    def cell(self, network: str, images: str, comparison: str, method: str) -> Cell:
        """The runs of one method, no trials; METHOD@RATE: at another learning rate."""
        method, _, rate = method.partition("@")
        plan = Plan(int(images), (network,), (method,), (comparison,), ())
        lr = float(rate) if rate else plan.best_lr(network, method, self.rows)
        if lr is None:
            return Cell({})
        rounds = at(Experiment(network, int(images), method, 0, lr, 1), comparison).rounds
        asked = {"network": network, "images": images, "method": method}
        asked |= {"lr": str(lr), "rounds": str(rounds)}
        found = (row for row in self.rows if asked.items() <= row.items() and row["seed"] != str(TRIAL_SEED))
        return Cell({row["seed"]: row for row in found})

    def statistic(self, key: str) -> float:
        """What a number's ``key`` stands for; KeyError if there is no such thing."""
        network, images, comparison, method, name = key.split()
        name, _, other = name.partition("-to-")
        name, _, sd = name.partition("-")
        cell, read = self.cell(network, images, comparison, method), STATISTICS[name]
        values = cell.values(read)
        if other:
            other, _, elsewhere = other.partition("@")
            values = cell.ahead_of(self.cell(network, images, elsewhere or comparison, other), read)
        if not len(values) or sd not in ("", "sd"):
            raise KeyError(key)
        return float(spread(values) if sd else values.mean())

    def table(self, name: str) -> str:
        """The table ``name``: [merging|joint|confidence] NETWORK IMAGES COMPARISON; lr NETWORK IMAGES; or
        summary NETWORK IMAGES [COMPARISON ...]."""
        kind, *rest = name.split()
        others: dict[str, Callable[..., Iterator[str]]]
        others = {"lr": self._lr_table, "summary": self._summary_table, "confidence": self._confidence_table}
        if kind in others:
            return "".join(others[kind](*rest))
        if kind in VARIANTS:
            return "".join(self._accuracy_table(*VARIANTS[kind], *rest))
        return "".join(self._accuracy_table("sgd", METHODS, *name.split()))

    def _accuracy_table(
        self, base: str, methods: Mapping[str, Method], network: str, images: str, comparison: str
    ) -> Iterator[str]:
        first = self.cell(network, images, comparison, base)
        ahead_of = f"to {ALL[base].title}"
        heads = "first exit", "last exit", "mean of exits", ahead_of, "area", "passes", "steps", "seeds"
        yield head(*heads)
        for method, (title, *_) in {base: ALL[base], **methods}.items():
            cell = self.cell(network, images, comparison, method)
            if not cell.rows:
                continue
            shown = {
                key: plus_minus(cell.values(STATISTICS[key])) for key in ("first", "last", "mean", "area")
            }
            off = cell.ahead_of(first, STATISTICS["mean"])
            ahead = plus_minus(off, sign=True) if method != base and len(off) else ""
            passes, steps = (cell.values(STATISTICS[name]).mean() for name in ("passes", "steps"))
            accuracies = shown["first"], shown["last"], shown["mean"], ahead, shown["area"]
            cost = f"{passes:.0f} | {steps:,.0f} | {len(cell.rows)}"
            yield f"| {title} | {' | '.join(accuracies)} | {cost} |\n"

    def _summary_table(self, network: str, images: str, *comparisons: str) -> Iterator[str]:
        """Mean of the exits, and how far it is ahead of joint SGD, in several comparisons."""
        comparisons = comparisons or SIDE_BY_SIDE
        heads = [part for each in comparisons for part in (COMPARISONS[each], "to joint SGD")]
        yield head(*heads)
        read = STATISTICS["mean"]
        for method, (title, *_) in {**METHODS, **JOINT}.items():
            cells = [self.cell(network, images, each, method) for each in comparisons]
            if not any(cell.rows for cell in cells):
                continue
            shown: list[str] = []
            for each, cell in zip(comparisons, cells, strict=True):
                ahead = cell.ahead_of(self.cell(network, images, each, "sgd"), read)
                shown.append(plus_minus(cell.values(read)) if cell.rows else "")
                shown.append(plus_minus(ahead, sign=True) if len(ahead) and method != "sgd" else "")
            yield f"| {title} | {' | '.join(shown)} |\n"

    def _confidence_table(self, network: str, images: str, comparison: str) -> Iterator[str]:
        """What the exits' probabilities are worth."""
        yield head("mean of exits", "last exit", "calibration error", "seeds")
        for method, (title, *_) in METHODS.items():
            rows = self.cell(network, images, comparison, method).rows
            cell = Cell({seed: row for seed, row in rows.items() if row["ece"]})
            if cell.rows:
                shown = (plus_minus(cell.values(STATISTICS[key])) for key in ("mean", "last", "ece"))
                yield f"| {title} | {' | '.join(shown)} | {len(cell.rows)} |\n"

    def _lr_table(self, network: str, images: str) -> Iterator[str]:
        trials: dict[str, dict[str, float]] = {}
        for row in self.rows:
            if (row["network"], row["images"], row["seed"]) == (network, images, str(TRIAL_SEED)):
                trials.setdefault(row["method"], {})[row["lr"]] = 100 * float(row["val_mean"])
        rates = sorted({lr for tried in trials.values() for lr in tried}, key=float)
        yield head(*rates)
        for method, tried in trials.items():
            best = max(tried.values())
            cells = [f"**{tried[lr]:.1f}**" if tried[lr] == best else f"{tried[lr]:.1f}" for lr in rates]
            yield f"| {ALL[method].title} | {' | '.join(cells)} |\n"


def spread(values: Values) -> float:
    """Standard deviation of the sample; 0 of one value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def plus_minus(values: Values, sign: bool = False) -> str:
    """Mean and standard deviation, with one decimal."""
    mean = f"{values.mean():+.1f}".replace("-", "−") if sign else f"{values.mean():.1f}"
    return f"{mean} ± {spread(values):.1f}" if len(values) > 1 else mean


def filled(page: str, results: Results) -> str:
    """``page`` with its tables and numbers as ``results`` has them."""

    def number(match: re.Match[str]) -> str:
        decimals, sign = len(match[1].partition(".")[2]), "+" if match[1][0] in "+-−" else ""
        shown = f"{results.statistic(match[2]):{sign}.{decimals}f}".replace("-", "−")
        return f"{shown}<!-- {match[2]} -->"

    page = TABLE.sub(lambda match: f"<!-- table {match[1]} -->\n{results.table(match[1])}<!-- end -->", page)
    return NUMBER.sub(number, page)


def loose_numbers(page: str) -> list[str]:
    """Accuracies in the text of the page's results that do not say what they are."""
    text = re.sub(NOT_MEASURED, "", TABLE.sub("", page.partition(MEASURED_ENDS)[0]), flags=re.S)
    return re.findall(r"\d+\.\d+|\d+(?= ?(?:%|points?\b))", NUMBER.sub("", text))


def budget_figure(results: Results, network: str, images: str) -> Figure:
    """Accuracy over average operations (paper, Fig. 2) at equal compute, the seeds' mean."""
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for index, (method, (title, *_)) in enumerate(METHODS.items()):
        cell = results.cell(network, images, "compute", method)
        curves = [_curve(results.budgets[row["name"]]) for row in cell.rows.values()]
        if curves:
            x, y = np.mean(curves, axis=0).T
            axes.plot(x / 1e6, y, label=title, **run_style(index, 100))
    axes.set_xlabel("average operations per image (M)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(f"{NETWORKS[network].title}, {images} images, {COMPARISONS['compute']}", fontsize=10)
    plain_axes(axes)
    legend_outside(figure, axes)
    return figure


def _curve(budgets: Sequence[Row]) -> Values:
    """Operations, and accuracy in percent, of every budget: (budgets, 2)."""
    return np.array([(float(line["operations"]), 100 * float(line["accuracy"])) for line in budgets])


def progress_figure(results: Results, network: str, images: str) -> Figure:
    """Validation accuracy, mean of exits, over training passes and seconds, the seeds' mean."""
    figure = new_figure(9, 4)
    axes = figure.subplots(1, 2, sharey=True)
    for index, (method, (title, *_)) in enumerate(METHODS.items()):
        rows = results.cell(network, images, "compute", method).rows.values()
        runs = [results.rounds[row["name"]] for row in rows]
        if not runs:
            continue
        means = [[np.mean(numbers(line["val"])) for line in run] for run in runs]
        for each, column in zip(axes, ("training_passes", "seconds"), strict=True):
            x = np.mean([[float(line[column]) for line in run] for run in runs], axis=0)
            each.plot(x, 100 * np.mean(means, axis=0), label=title, **run_style(index, 100))
    axes[0].set_xlabel("training passes")
    axes[1].set_xlabel("seconds, one core")
    axes[0].set_ylabel("validation accuracy (%), mean of exits")
    for each in axes:
        plain_axes(each)
    legend_outside(figure, axes[0])
    return figure


def merge_figure(results: Results, network: str, images: str) -> Figure:
    """What Meta-GF merges with over the rounds: conflict before and after, and every exit's mean weight."""
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    runs = results.cell(network, images, "epochs", "metagf").rows.values()
    lines = [line for row in runs for line in results.rounds[row["name"]]]
    rounds = sorted({int(line["round"]) for line in lines})

    def draw(axes: Axes, index: int, label: str, read: Callable[[Row], float]) -> None:
        means = [np.mean([read(line) for line in lines if int(line["round"]) == each]) for each in rounds]
        axes.plot(rounds, means, label=label, **run_style(index, 100))

    draw(left, 0, "before fusion", lambda line: 100 * float(line["conflict_before"]))
    draw(left, 1, "after fusion", lambda line: 100 * float(line["conflict_after"]))
    for exit in range(len(numbers(lines[0]["mean_weight"]))):
        draw(right, exit, f"exit {exit + 1}", partial(_weight, exit))
    left.set_ylabel("negative cosines (%)")
    right.set_ylabel("mean fusion weight")
    for axes in (left, right):
        axes.set_xlabel("round")
        whole_numbers(axes)
        axes.set_ylim(0)
        axes.legend(frameon=False, fontsize=8)
        plain_axes(axes)
    figure.suptitle(f"{NETWORKS[network].title}, {images} images, Meta-GF", fontsize=10)
    return figure


def _weight(exit: int, line: Row) -> float:
    return numbers(line["mean_weight"])[exit]


def main(options: Options) -> None:
    """Write, or compare."""
    results = Results(options.results)
    texts = {page: page.read_text() for page in options.pages}
    if options.check:
        changed = [line for text in texts.values() for line in differences(text, filled(text, results))]
        loose = [number for text in texts.values() for number in loose_numbers(text)]
        print(json.dumps({"runs": len(results.rows), "lines_that_differ": changed, "unexplained": loose}))
        sys.exit(int(bool(changed or loose)))
    for page, text in texts.items():
        page.write_text(filled(text, results))
    shown = "".join(texts.values())
    made = list(figures(results, options.images, shown))
    print(json.dumps({"runs": len(results.rows), "figures": made}))


def differences(before: str, after: str) -> list[str]:
    """Lines that a page should not have (-), and those that it should (+)."""
    changes = unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in changes if not line.startswith(("---", "+++", "@@"))]


def figures(results: Results, folder: Path, pages: str) -> Iterator[str]:
    """Draw those that ``pages`` show."""
    draw = {"budget": budget_figure, "progress": progress_figure, "merge": merge_figure}
    for name, network, images, kind in sorted(set(FIGURE.findall(pages))):
        draw[kind](results, network, images).savefig(folder / name)
        yield name


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
