"""Measures the structure of the code: files, circular imports, files that a round enters, functions, tests.

    python benchmarks/house.py
    python benchmarks/house.py --root ../other-checkout --names

Files: all of raygf/ but an ``__init__.py`` of docstring, imports and ``__dunder__`` names. Lines: ``wc -l``.
An import of a name that such an ``__init__.py`` re-exports counts as an import of the file that defines it.

- Folders in circles: folders and loose modules right under raygf/; an import anywhere in a file counts.
- One importer: one file of raygf/ and jobs/ imports it, from the same folder.
- Files in circles: an import inside a function does not count.
- Entered: files under raygf/ of which a function is called, by the second round of a tiny local Meta-GF run,
  and by the calls of ``ExitTrainer.train`` in it. Not measured if Python finds raygf elsewhere than in root.
- Functions: all with ``def``, nested ones too. Length: from the line of ``def`` to the last, docstring
  included. Typed: every argument but ``self`` and ``cls``, and the result.
- Unit tests: tests/unit/F/test_N.py is for raygf/F/N.py.
"""

from __future__ import annotations

import ast
import json
import statistics
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

import tyro
from rich.console import Console
from rich.table import Table

import raygf

Function = ast.FunctionDef | ast.AsyncFunctionDef
Graph = Mapping[str, set[str]]
Measures = dict[str, float | list[str]]
"""Numbers, and lists of which the length is the number."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    root: Path = Path(__file__).resolve().parents[1]
    """The checkout."""
    names: bool = False
    """Also print what was counted."""


class Source:
    """One Python file; ``path`` from the root of the checkout, ``module`` as imports name it."""

    def __init__(self, root: Path, path: Path) -> None:
        text = path.read_text()
        self.path = path.relative_to(root)
        self.module = ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")
        self.lines = text.count("\n")
        self.tree = ast.parse(text)
        self.init = path.name == "__init__.py"
        self.counts = not (self.init and all(map(_defines_nothing, self.tree.body)))

    def imports(self, *, loading: bool) -> Iterator[tuple[str, str]]:
        """Module and name of every import; ``loading``: outside of functions."""
        nodes = set(ast.walk(self.tree))
        if loading:
            nodes -= {part for node in nodes if isinstance(node, Function) for part in ast.walk(node)}
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = self.path.with_suffix("").parts[: -node.level] if node.level else ()
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((base, alias.name) for alias in node.names)


def _defines_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return all(isinstance(name, ast.Name) and name.id.startswith("__") for name in node.targets)
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, ast.Import | ast.ImportFrom)


def read(root: Path, folder: str) -> list[Source]:
    """All Python files of a folder."""
    return [Source(root, path) for path in sorted((root / folder).rglob("*.py"))]


def who_imports(sources: Sequence[Source], *, loading: bool) -> dict[str, set[str]]:
    """Path of every file, and the paths of those that it imports."""
    paths = {source.module: str(source.path) for source in sources}
    inits = [source for source in sources if source.init]
    handed_on = {f"{s.module}.{name}": base for s in inits for base, name in s.imports(loading=True) if name}
    graph = {path: set[str]() for path in paths.values()}
    for source in sources:
        for base, name in source.imports(loading=loading):
            while (full := f"{base}.{name}") in handed_on.keys() - paths.keys():
                base = handed_on[full]
            target = full if full in paths else base
            graph[str(source.path)] |= {paths[target]} if target in paths else set()
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Groups of more than one node in which every node leads to every other."""
    reached = {node: {*targets} for node, targets in graph.items()}
    for middle in graph:
        for found in reached.values():
            found |= reached[middle] if middle in found else set()
    groups = {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def in_files(sources: Sequence[Source], tests: Sequence[Source]) -> Measures:
    """Files, lines, and unit tests against modules."""
    files = [source.path for source in sources if source.counts]
    modules = {str(Path(*path.parts[1:])) for path in files}
    paths = [Path(*test.path.parts[2:]) for test in tests if test.path.parts[1] == "unit"]
    mirrored = {str(p.with_name(p.name[len("test_") :])) for p in paths if p.name.startswith("test_")}
    return {
        "files": len(files),
        "lines": sum(source.lines for source in sources),
        "loose modules": [path.name for path in files if len(path.parts) == 2 and path.stem != "__init__"],
        "lines of tests": sum(test.lines for test in tests),
        "unit tests without module": sorted(mirrored - modules),
        "modules without unit test": sorted(modules - mirrored),
    }


def in_imports(sources: Sequence[Source], jobs: Sequence[Source]) -> Measures:
    """Circles of folders and of files, and files with one importer."""
    importers, folders = defaultdict[str, list[str]](list), defaultdict[str, set[str]](set)
    empty = {str(source.path) for source in sources if not source.counts}
    for user, targets in who_imports([*sources, *jobs], loading=False).items():
        for target in targets:
            importers[target] += [] if user in empty else [user]
            if user.startswith("raygf"):
                folders[Path(user).parts[1]].add(Path(target).parts[1])
    alone = [(target, *users) for target, users in sorted(importers.items()) if len(users) == 1]
    by_folder, by_file = circles(folders), circles(who_imports(sources, loading=True))
    return {
        "circles of folders": [", ".join(circle) for circle in by_folder],
        "folders in circles": sum(map(len, by_folder)),
        "circles of files": [", ".join(circle) for circle in by_file],
        "files in circles": sum(map(len, by_file)),
        "one importer": [f"{a} ← {b}" for a, b in alone if Path(a).parent == Path(b).parent],
    }


def in_functions(sources: Sequence[Source]) -> Measures:
    """Count, lengths and types."""
    nodes = [(source.path, node) for source in sources for node in ast.walk(source.tree)]
    functions = [(path, node) for path, node in nodes if isinstance(node, Function)]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for _, node in functions]
    untyped = [f"{path}:{node.lineno} {node.name}" for path, node in functions if not typed(node)]
    return {
        "functions": len(functions),
        "median length": statistics.median(lengths),
        "90th percentile of length": statistics.quantiles(lengths, n=10, method="inclusive")[-1],
        "share typed": round(1 - len(untyped) / len(functions), 4),
        "untyped": untyped,
    }


def typed(function: Function) -> bool:
    """Whether all of its signature has types."""
    given = function.args
    maybe = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
    bare = [each.arg for each in maybe if each is not None and each.annotation is None]
    return function.returns is not None and set(bare) <= {"self", "cls"}


@contextmanager
def entered(folder: Path, step: CodeType) -> Iterator[tuple[set[str], set[str]]]:
    """Files under ``folder`` that are entered while ``step`` runs inside, and all inside."""
    found, running = (set[str](), set[str]()), False

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal running
        code = frame.f_code
        if code is step:
            running = event != "return"
        if event == "call" and code.co_name != "<module>" and Path(code.co_filename).is_relative_to(folder):
            for files in found if running else found[1:]:
                files.add(str(Path(code.co_filename).relative_to(folder)))

    threading.setprofile(note)  # for threads that start inside
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def in_running(root: Path) -> Measures:
    """Files entered by exit-training steps and by a round; nothing if another checkout would run."""
    folder = root / "raygf"
    if Path(raygf.__file__).parent != folder:
        return {}
    from tiny import tiny_run  # only here: what else is measured needs none of it

    from raygf.config.run import ResourceConfig, StorageConfig
    from raygf.rounds.driver import Driver
    from raygf.training.exit_trainer import ExitTrainer, LocalExecutor

    with tempfile.TemporaryDirectory() as storage:
        config = tiny_run(2, 3, StorageConfig(storage, "house"), ResourceConfig(executor="local"))
        with closing(Driver(config, lambda run, data, exits: LocalExecutor(run, data))) as driver:
            driver.prepare()
            rounds = driver.rounds("")
            next(rounds)
            with entered(folder, ExitTrainer.train.__code__) as found:
                next(rounds)
    return {"entered by a step": sorted(found[0]), "entered by a round": sorted(found[1])}


def main(options: Options) -> None:
    """Print the table, the names if wanted, and last, one line of JSON."""
    root = options.root.resolve()
    sources, jobs, tests = (read(root, folder) for folder in ("raygf", "jobs", "tests"))
    measures = in_files(sources, tests) | in_imports(sources, jobs) | in_functions(sources) | in_running(root)
    values = {name: len(found) if isinstance(found, list) else found for name, found in measures.items()}
    table = Table("", "", title=f"The house at {root}", show_header=False)
    for name, found in measures.items():
        table.add_row(name, f"{values[name]:g}")
        if options.names and isinstance(found, list):
            print(f"{name}:", *found, sep="\n    ")
    Console(width=110).print(table)
    print(json.dumps({name.replace(" ", "_"): value for name, value in values.items()}), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
