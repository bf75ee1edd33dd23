"""What pyproject.toml has no words for: ``tune_spaces/`` is installed inside of raygf."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["raygf", "raygf.*"]), "raygf.tune_spaces"],
    package_dir={"raygf.tune_spaces": "tune_spaces"},
)
