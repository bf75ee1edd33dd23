"""What ``ray job submit --working-dir .`` uploads, by Ray's own packaging."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

REPOSITORY = Path(__file__).parents[2]
CODE = ("raygf/", "jobs/", "tune_spaces/")
BESIDE = {".gitignore", ".rayignore", "README.md", "pyproject.toml"}
LEFT = (
    *(
        ".git/HEAD",
        ".venv/bin/python",
        ".hypothesis/x",
        ".ci/run",
        "tests/unit/test_x.py",
        "docs/images/a.png",
    ),
    *("benchmarks/b.py", "deploy/local.yaml", "cluster.yaml", "Makefile", "CHANGELOG.md"),
    *("mlflow.db", "mlflow.db-wal", "mlartifacts/1/m.bin", "runs/one/round-000001.npz", "data/cifar10/x.bin"),
    *("results/a.csv", "figures/a.png", "toy/eq7.md", "raygf/__pycache__/x.pyc", "raygf.egg-info/PKG-INFO"),
    *("some.parquet", "weights.npz", "photos.tar"),
)
SENT = (
    "raygf/rounds/driver.py",
    "raygf/models/msdnet.py",
    "jobs/digits.py",
    "tune_spaces/fusion_lr.py",
    "mine.py",
)


def packed(folder: Path, tmp_path: Path) -> tuple[set[str], int]:
    """Files in the package that Ray makes of ``folder``, and its size in bytes."""
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}, package.stat().st_size


def test_a_copy_that_has_been_used_sends_its_code_alone(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    for name in (*LEFT, *SENT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    files, _ = packed(folder, tmp_path)
    assert files == {*SENT, ".gitignore", ".rayignore"}


def test_this_repository_sends_less_than_a_megabyte(tmp_path: Path) -> None:
    """docs/cluster.md says so."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    if listed.returncode:
        pytest.skip("not a git checkout")
    known = {name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()}
    files, size = packed(REPOSITORY, tmp_path)
    sent = files & known
    assert sent == {name for name in known if name.startswith(CODE)} | (BESIDE & known)
    assert size < 1_000_000
