"""The launcher's files: as Ray checks them, and everything that they name is there."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import REPOSITORY, check, commands, parse_ray
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

FILES = ("cluster.yaml", "deploy/local.yaml")
COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)
IMAGE = re.compile(r"rayproject/ray:(\d+\.\d+\.\d+)-py3(\d+)-(cpu|gpu)")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / name).read_text())
    return loaded


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_ray_would_refuse_a_misspelt_field(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validate_config(prepare_config({**config, "idle_timeout_minute": 10}))


def test_commands_parse_and_name_files_that_are_there(config: dict[str, Any]) -> None:
    mounts = config["file_mounts"]
    for field in COMMANDS:
        for line in config.get(field, []):
            for words in commands(line):
                check([as_local(word, mounts) for word in words])


def as_local(word: str, mounts: dict[str, str]) -> str:
    """``word`` with a path on the nodes replaced by what is mounted there."""
    for remote, local in mounts.items():
        if word == remote or word.startswith(f"{remote}/"):
            return local + word.removeprefix(remote)
    return word


def test_mounts_are_in_the_repository_or_the_token(config: dict[str, Any]) -> None:
    for remote, local in config["file_mounts"].items():
        if remote.endswith("/.ray/auth_token"):
            assert local == "~/.ray/auth_token"
        else:
            assert (REPOSITORY / local).is_dir()  # Docker does not follow updates of single files


def test_every_start_of_ray_is_of_one_cluster(config: dict[str, Any]) -> None:
    starts = {}
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        (words,) = [
            words for line in config[field] for words in commands(line) if words[:2] == ["ray", "start"]
        ]
        starts[field.partition("_")[0]] = parse_ray(words[1:])
    assert starts["head"]["head"] and not starts["worker"]["head"]
    assert starts["head"]["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert starts["worker"]["address"] == f"$RAY_HEAD_IP:{starts['head']['port']}"


def test_tokens_are_on_everywhere(config: dict[str, Any]) -> None:
    options = config.get("docker", {}).get("run_options", [])
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    lines = [line for line in starts if "ray start" in line]
    assert len(lines) == 2
    assert "-e RAY_AUTH_MODE=token" in options or all("RAY_AUTH_MODE=token" in line for line in lines)
    assert any(remote.endswith("/.ray/auth_token") for remote in config["file_mounts"])


def test_head_starts_mlflow_after_ray(config: dict[str, Any]) -> None:
    *_, before, last = config["head_start_ray_commands"]
    assert "ray start --head" in before
    assert "/start_mlflow.sh " in last


def test_aws_exits_come_with_gpus_and_from_none() -> None:
    config = read("cluster.yaml")
    types = config["available_node_types"]
    assert config["head_node_type"] == "head" and set(types) == {"head", "exits"}
    assert (types["head"]["min_workers"], types["head"]["max_workers"]) == (0, 0)
    assert types["exits"]["min_workers"] == 0 < types["exits"]["max_workers"] <= config["max_workers"]
    (head,), (worker,) = (IMAGE.findall(config["docker"][key]) for key in ("head_image", "worker_image"))
    assert (head[2], worker[2]) == ("cpu", "gpu")


def test_ray_version_is_the_same_everywhere_and_fits_the_project() -> None:
    images = set()
    for name in ("cluster.yaml", "deploy/Dockerfile"):
        images |= {(version, minor) for version, minor, _ in IMAGE.findall((REPOSITORY / name).read_text())}
    ((version, minor),) = images
    assert f"'ray[default,train,tune]=={version}'" in (REPOSITORY / "deploy/local.yaml").read_text()
    assert f'rayVersion: "{version}"' in (REPOSITORY / "deploy/rayjob.yaml").read_text()
    (least,) = [re.search(r">=([\d.]+)", line) for line in PROJECT["dependencies"] if line.startswith("ray[")]
    assert least is not None
    assert as_numbers(version) >= as_numbers(least[1])
    assert (3, int(minor)) >= as_numbers(PROJECT["requires-python"].removeprefix(">="))


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_nodes_get_the_packages_of_the_project() -> None:
    lines = (REPOSITORY / "deploy" / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == PROJECT["dependencies"]


def test_image_is_made_of_what_is_there_and_not_left_out() -> None:
    text = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    kept = (REPOSITORY / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert kept[0] == "*"
    sources = [
        source
        for line in text.splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
        if not source.startswith("--")
    ]
    assert {f"!{source}" for source in sources} == {line for line in kept if line.startswith("!")}
    assert all((REPOSITORY / source).exists() for source in sources)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "deploy" / "aws").glob("*.json")), ids=lambda p: p.name)
def test_policies_are_whole(path: Path) -> None:
    policy = json.loads(path.read_text())
    assert policy.keys() == {"Version", "Statement"} and policy["Version"] == "2012-10-17"
    who = "Principal" if path.name == "trust.json" else "Resource"
    for statement in policy["Statement"]:
        assert statement.keys() == {"Effect", "Action", who}
        assert statement["Effect"] == "Allow"


def statements(policy: str) -> list[dict[str, Any]]:
    loaded = json.loads((REPOSITORY / "deploy" / "aws" / f"{policy}.json").read_text())
    return list(loaded["Statement"])


def test_policies_are_for_the_bucket_and_profiles_of_the_cluster() -> None:
    text = (REPOSITORY / "cluster.yaml").read_text()
    (bucket,) = set(re.findall(r"s3://([\w-]+)", text))
    resources = [
        each["Resource"]
        for each in json.loads((REPOSITORY / "deploy/aws/bucket.json").read_text())["Statement"]
    ]
    assert resources == [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    types = read("cluster.yaml")["available_node_types"]
    profiles = {key: node["node_config"]["IamInstanceProfile"]["Name"] for key, node in types.items()}
    assert profiles == {"head": "raygf-head", "exits": "raygf-worker"}
    (passed,) = [each["Resource"] for each in statements("launch") if each["Action"] == "iam:PassRole"]
    assert passed.endswith(f":role/{profiles['exits']}")
