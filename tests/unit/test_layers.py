"""The layers that docs/architecture.md draws: modules import from lower ones, edges load Ray or MLflow."""

import ast
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = (
    ("errors",),
    ("config", "records"),
    ("compute", "cli"),
    ("data",),
    ("models",),
    ("training",),
    ("methods", "storage"),
    ("fusion",),
    ("evaluation",),
    ("rounds", "tracking", "console"),
    ("on_ray", "serving"),
    ("launch",),
    ("sweeps",),
    ("api", "__main__"),
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def imports(path, top=False):
    """The modules that the file imports anywhere, or only while it is itself imported (``top``)."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top else list(ast.walk(tree))
    plain = (alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names)
    return {*plain, *(node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))}


def layer_of(name):
    """The folder or loose module at raygf's top that the module belongs to."""
    return name.split("/")[0]


MODULES = sorted(path for path in (ROOT / "raygf").rglob("*.py") if path != ROOT / "raygf" / "__init__.py")
NAMES = [path.relative_to(ROOT / "raygf").with_suffix("").as_posix() for path in MODULES]


def test_modules_import_only_from_lower_layers():
    upward = [
        f"{name} imports {used}"
        for name, path in zip(NAMES, MODULES, strict=True)
        for used in sorted(used.split(".")[1] for used in imports(path) if used.startswith("raygf."))
        if used != layer_of(name) and HEIGHT[used] >= HEIGHT[layer_of(name)]
    ]
    assert upward == []


def test_only_the_edges_import_ray_or_mlflow():
    loaded = {
        (layer_of(name), used.split(".")[0])
        for name, path in zip(NAMES, MODULES, strict=True)
        for used in imports(path)
    }
    assert {layer for layer, library in loaded if library == "ray"} == {"on_ray", "sweeps"}
    assert {layer for layer, library in loaded if library == "mlflow"} == {"tracking", "serving"}


def test_files_do_not_import_each_other_in_a_circle():
    files = {
        "raygf." + name.replace("/", ".").removesuffix(".__init__"): path
        for name, path in zip(NAMES, MODULES, strict=True)
    }
    left = {name: imports(path, top=True) & files.keys() - {name} for name, path in files.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_every_module_has_a_layer_and_every_layer_a_module():
    assert sorted({layer_of(name) for name in NAMES}) == sorted(chain(*LAYERS))


def test_architecture_page_shows_the_layers():
    """The picture has a line a layer, the highest first."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert diagram() in page, f"docs/architecture.md should show:\n{diagram()}"


def diagram():
    """``LAYERS`` as text, the highest first, under the jobs."""
    rows = ["jobs/", *("   ".join(layer) for layer in reversed(LAYERS))]
    width = max(map(len, rows))
    edge = "─" * (width + 2)
    return f"┌{edge}┐\n" + f"\n├{edge}┤\n".join(f"│ {row:^{width}} │" for row in rows) + f"\n└{edge}┘"
