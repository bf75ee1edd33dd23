"""The commands on the pages are understood by their programs, the examples run, figures and links hold."""

import ast
import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import click
import pytest
from command_lines import REPOSITORY, check, commands
from demo import budget_table
from timing import machine

import raygf
from raygf.compute import Compute
from raygf.config.recipes import get_recipe
from raygf.config.run import ModelConfig, ResourceConfig, StorageConfig, TrackingConfig
from raygf.console import print_table
from raygf.data.base import InputSpec
from raygf.errors import RaygfError
from raygf.launch import run
from raygf.models.build import build_model
from raygf.sweeps.command import check_flags, check_space, parse_sweep
from raygf.sweeps.space import draw_trials, known_spaces, load_space, read_axes
from raygf.training.network import BoundNetwork

NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
FILES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), NOTEBOOK]


def page_text(path):
    """Of a notebook, the text of its cells."""
    return "\n\n".join("".join(cell["source"]) for cell in CELLS) if path == NOTEBOOK else path.read_text()


PAGES = {path.stem: page_text(path) for path in FILES}
CLUSTER = PAGES["cluster"]
SCRIPT = r"^```(?:bash)?\n((?:python|raygf?|export|pip|docker) .*?)^```$"
COMMANDS = {
    " ".join(words): words
    for text in PAGES.values()
    for script in re.findall(SCRIPT, text, re.DOTALL | re.MULTILINE)
    for words in commands(script)
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_programs_understand_the_commands_of_the_pages(words):
    check(words)


WRONG = """
ray start --hed
ray jobs submit -- python jobs/digits.py
ray job submit -- python jobs/digits.py --round 3
python jobs/number.py --rounds 3
python jobs/evaluate.py --checkpoints x
raygf evaluate --outs figures
raygf pedict runs/x a.png
mlflow server --served-artifacts
ray up deploy/cluster.yaml
helm install raygf
"""


@pytest.mark.parametrize("words", commands(WRONG), ids=" ".join)
def test_wrong_commands_are_found(words):
    with pytest.raises((click.UsageError, AssertionError, RaygfError)):
        check(words)


def test_the_page_of_clusters_has_every_stage_and_job_and_its_files_are_there():
    for start in ("ray up", "ray job submit", "ray job logs", "ray job stop", "ray down", "kubectl apply"):
        assert re.search(rf"^{start}", CLUSTER, re.MULTILINE), start
    for job in ("digits", "imagenet", "sweep", "evaluate"):
        assert f"python jobs/{job}.py" in CLUSTER, job
    for path in FILES:
        for test in re.findall(r"\btest_\w+\.py", PAGES[path.stem]):
            assert list((REPOSITORY / "tests").rglob(test)), test


def tables(title):
    """The rows of every table of docs/cluster.md whose head line has ``title``."""
    table = rf"^\|[^\n]*{re.escape(title)}[^\n]*\n\|[-| ]+\|\n((?:\|[^\n]*\n)+)"
    found = re.findall(table, CLUSTER, re.MULTILINE)
    return [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in part.splitlines()] for part in found
    ]


def test_rounds_by_gpus_add_up():
    """And each division is one that the executor would make."""
    none, everything = tables("`--fusion.shards`")
    for table in (none, everything):
        one = float(table[0][4])
        for gpus, actors, replicas, shards, *numbers in table:
            round, train, fuse = map(float, numbers[:3])
            efficiency, waiting, dividing = (float(share.removesuffix(" %")) for share in numbers[3:])
            assert round == pytest.approx(train + fuse, abs=0.011)
            assert efficiency == pytest.approx(100 * one / int(gpus) / round, abs=1.0)
            assert efficiency + waiting + dividing == pytest.approx(100, abs=1.5)
            assert int(actors) == min(int(gpus), sum(map(int, replicas.split())))
            assert shards in ("1", actors)
    assert [row[0] for row in none] == [row[0] for row in everything] == ["1", "2", "3", "4", "6", "8", "16"]


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """What its headings are called in an address, by GitHub as by MkDocs."""
    titles = re.findall(r"^#+ (.*)", without_code(page_text(page)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_links_and_figures_of_a_page_hold_and_it_says_what_is_next(path):
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", without_code(page_text(path)))
    for link in links:
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert path.parent == REPOSITORY or target.is_relative_to(path.parent), f"{link}: not on the site"
        assert not anchor or anchor in anchors(target), link
    last = page_text(path).rstrip().rpartition("\n\n")[2]
    assert path.stem == "README" or re.match(r"Next: .*\]\(\w+\.(md|ipynb)", last, re.DOTALL), last


def test_every_page_has_a_place_on_the_site_and_in_the_readme():
    site = (REPOSITORY / "docs" / "site" / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = PAGES.keys() - {"README"}
    assert {*re.findall(r"(\w+)\.md", site)} == pages
    assert {*re.findall(r"docs/(\w+)\.(?:md|ipynb)", PAGES["README"])} == pages - {"index", "pairs"}
    names = (name.rpartition(".") for name in re.findall(r"^::: (\S+)", PAGES["api"], re.MULTILINE))
    shown = [getattr(importlib.import_module(module), name) for module, _, name in names]
    assert all(getattr(raygf, name) in shown for name in raygf.__all__)


def test_the_page_of_speed_has_the_versions_that_benchmarks_print():
    shown = ("Python", "PyTorch", "torchvision", "Ray", "MLflow")
    assert re.search(", ".join(rf"{name} [\d.]+\d" for name in shown), " ".join(PAGES["speed"].split()))
    assert {"python", "torch", "torchvision", "ray", "mlflow"} < machine().keys()


@pytest.mark.parametrize(
    ("recipe", "spec", "title"),
    [
        ("imagenet-msdnet-metagf", InputSpec(3, 224, 224, 1000), "MSDNet, ImageNet, 5 exits"),
        ("cifar100-msdnet-metagf", InputSpec(3, 32, 32, 100), "MSDNet, CIFAR-100, 7 exits"),
    ],
)
def test_bytes_of_a_round_follow_from_the_network(recipe, spec, title):
    config = get_recipe(recipe)
    network = build_model(config.model, spec, config.seed)
    state = BoundNetwork(network, Compute("cpu", "fp32", "channels_last")).state()
    buffers = sum(array.nbytes for array in state.buffers.values())
    each = 4 * state.vector.size + buffers
    assert state.vector.nbytes + buffers == each
    sent = f"{2 * config.model.msdnet.exits * each / 1e9:.2f} GB"
    expected = [title, f"{state.vector.size:,}", f"{buffers:,}", f"{each:,}", sent]
    assert [row for row in tables("4P + b")[0] if row[0] == title] == [expected]


def without_numbers(text):
    """The kinds of its lines, but for those that tell the time."""
    lines = (line for line in text.splitlines() if not line.startswith("| Wall time"))
    return {re.sub(r"[-:]{2,}|\d[\d.]*", "#", re.sub(" +", " ", line)) for line in lines}


def run_short(block, names):
    """As a cell, which shows the value of its last line; with two rounds in place of twenty."""
    *lines, last = ast.parse(block.replace("rounds=20", "rounds=2, train_limit=96")).body
    exec(compile(ast.Module(lines, []), "a page", "exec"), names)
    exec(compile(ast.Interactive([last]), "a page", "single"), names)


def test_the_program_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_short(python_block("README"), found := {})
    assert found["run"].result.rounds == 2 and (tmp_path / "model" / "model.json").exists()
    capsys.readouterr()
    print_table(budget_table(found["run"].loaded))
    title, _, head, *_, whole, _ = capsys.readouterr().out.splitlines()
    assert title.strip() in PAGES["README"] and head.strip() in PAGES["README"]
    assert re.search(r"^  4.33 +4.33 +100% .* 0% +0% +100% *$", whole) and whole[:30] in PAGES["README"]


def test_the_notebook_runs_and_its_cells_print_what_they_show(tmp_path, monkeypatch, capsys):
    """A line of progress for every round goes to standard error, which is all that a notebook needs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(REPOSITORY / "docs" / "images")
    found, errors, pictures = {}, "", 0
    for cell in CELLS:
        if cell["cell_type"] == "code":
            run_short("".join(cell["source"]), found)
            printed, progress = capsys.readouterr()
            errors += progress
            for output in cell["outputs"]:
                shown = output.get("data") or {"text/plain": output["text"]}
                pictures += "image/png" in shown
                if "text/plain" in shown:
                    assert without_numbers(printed) == without_numbers("".join(shown["text/plain"]))
    assert pictures == 3 and found["run"].result.rounds == 2 and found["answer"].label.shape == (3,)
    assert re.findall(r"^round (\d)/2  .* %", errors, re.MULTILINE) == ["1", "2"] and "\r" not in errors
    assert not re.search(r'"name": "stderr"|[ "\']/\w+/', NOTEBOOK.read_text())  # nothing of one machine


def python_block(page):
    (block,) = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    return block


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The Python block of docs/method.md as the module ``mine``."""
    (tmp_path / "mine.py").write_text(python_block("method"))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine", None)  # another test's
    yield
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("method", ["mine:by_length", "delta-mine:by_length", "metagf"])
def test_a_network_and_a_method_of_ones_own(mine, tmp_path, method):
    recipe = replace(get_recipe("digits"), method=method, rounds=6, model=ModelConfig("mine:two_exits"))
    where = {"resources": ResourceConfig(executor="local"), "storage": StorageConfig(str(tmp_path))}
    result = run(replace(recipe, **where, tracking=TrackingConfig(enabled=False)))
    assert len(result.test_accuracy) == 2
    assert result.test_accuracy[-1] > 0.2  # chance is 0.1
    first, last = result.operations
    spent = {"mine": last + 2 * (first + last), "delta-mine": 7 * last, "metagf": 9 * last}  # of a round
    assert result.training_passes == pytest.approx(6 * spent[method.partition(":")[0]] / (3 * last))
    if "mine" in method:
        assert f"jobs/digits.py --model.name mine:two_exits --method {method}" in PAGES["method"]


def test_the_page_of_serving_answers_from_a_run_and_from_its_segments(tracked_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(Path(tracked_run.result.checkpoint).parent)
    exec(python_block("serving"), found := {})
    assert found["answers"].label[:1] == found["logits"].argmax(1).numpy()


def test_the_search_space_of_the_page_can_be_swept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tune_spaces").mkdir()
    (tmp_path / "tune_spaces" / "small_batches.py").write_text(python_block("sweeps"))
    command = parse_sweep("", ["--space", "small_batches", "--trials", "12"])
    space = load_space("small_batches", command.run)
    check_flags(command)
    check_space(space, command)
    trials = draw_trials(read_axes(space), 12, 0)
    assert {trial["batch_size"] for trial in trials} == {8, 16, 32}
    assert sum(trial["loss.distill"] for trial in trials) == 6
    assert all(0.01 <= trial["optim.lr"] <= 0.1 for trial in trials)
    table = PAGES["sweeps"].partition("**Equal compute")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == known_spaces().keys() - {"small_batches"}
    assert named == {"fusion_lr", "method", "fusion", "joint", "rules", "outer"}


def test_the_tracker_of_the_page_follows_a_run(tmp_path, monkeypatch):
    """With a stand-in for the package that it feeds."""

    class Wandb(ModuleType):
        def init(self, **known):
            self.known, self.logged, self.summary = known, [], {}
            return self

        def log(self, metrics, step):
            self.logged.append((step, metrics["val_accuracy/average"]))

        def finish(self):
            self.ended = True

    (tmp_path / "mine_tracker.py").write_text(python_block("tracking"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", wandb := Wandb("wandb"))
    tracking = TrackingConfig(enabled=False, also=("mine_tracker:WeightsAndBiases",))
    where = {"resources": ResourceConfig(executor="local"), "storage": StorageConfig(str(tmp_path), "one")}
    result = run(replace(get_recipe("digits"), rounds=2, **where, tracking=tracking))
    assert [step for step, accuracy in wandb.logged if 0 < accuracy < 1] == [1, 2]
    assert (wandb.known["name"], wandb.known["config"]["rounds"], wandb.ended) == ("one", 2, True)
    assert wandb.summary["test_accuracy/exit_3"] == result.test_accuracy[2]
    assert "--tracking.also mine:WeightsAndBiases" in PAGES["tracking"]


@pytest.fixture
def results(monkeypatch):
    """The program that fills the pages."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("results")


def test_the_pages_have_what_follows_from_the_files_of_results(results):
    found = results.Results(REPOSITORY / "docs" / "results")
    assert all(results.Experiment.named(row["name"]).name == row["name"] for row in found.rows)
    for name in ("results", "README"):
        page = PAGES[name]
        assert results.filled(page, found) == page
        assert results.loose_numbers(page) == []
        wrong = results.NUMBER.sub(
            r"77.77<!-- \2 -->", results.TABLE.sub(r"<!-- table \1 -->\n<!-- end -->", page)
        )
        assert wrong.count("77.77") > 5 and "77.77" not in results.filled(wrong, found)
    assert results.loose_numbers("# Results\n48.3, 7 % and 1.5<!-- a --> %\n## How to\n2.5") == ["48.3", "7"]


def test_the_table_of_the_demonstration_follows_from_the_files_of_results(results):
    found = results.Results(REPOSITORY / "docs" / "results")
    name = "digits-192-metagf-r40-lr0.1-s0"
    (run,) = (row for row in found.rows if row["name"] == name)
    exits = zip(run["operations"].split(), run["test"].split(), strict=True)
    lines = [(line["operations"], line["accuracy"]) for line in found.budgets[name]]
    known = {(f"{float(spent) / 1e6:.2f}", f"{float(right):.1%}") for spent, right in [*exits, *lines]}
    rows = re.findall(r"^  [\d.]+ +([\d.]+) +\d+% +([\d.]+%) ", PAGES["README"], re.MULTILINE)
    assert len(rows) == 7 and {*rows} <= known
