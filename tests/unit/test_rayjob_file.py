"""The Kubernetes file: every object has the shape of its kind, and what they say of each other holds."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from command_lines import REPOSITORY, parse_job, parse_mlflow
from kuberay_schema import KINDS

from raygf.config.recipes import get_recipe
from raygf.config.run import RunConfig

Object = dict[str, Any]


@pytest.fixture
def objects() -> list[Object]:
    return list(yaml.safe_load_all((REPOSITORY / "deploy" / "rayjob.yaml").read_text()))


@pytest.fixture
def job(objects: list[Object]) -> Object:
    (found,) = [each["spec"] for each in objects if each["kind"] == "RayJob"]
    return found


@pytest.fixture
def run(job: Object) -> RunConfig:
    """The run that the entrypoint starts, as the job itself understands it."""
    python, program, *argv = shlex.split(job["entrypoint"])
    assert (python, program) == ("python", "/home/ray/raygf/jobs/imagenet.py")
    assert "WORKDIR /home/ray/raygf" in (REPOSITORY / "deploy" / "Dockerfile").read_text()
    config: RunConfig = parse_job("imagenet", argv)
    return config


@pytest.fixture
def workers(job: Object) -> Object:
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    return group


def test_every_object_has_the_shape_of_its_kind(objects: list[Object]) -> None:
    kinds = [each["kind"] for each in objects]
    assert set(kinds) == set(KINDS) and kinds.count("RayJob") == 1
    for each in objects:
        jsonschema.validate(each, KINDS[each["kind"]])


def put(*path: str | int, value: Any) -> Callable[[Object], None]:
    """A change of the RayJob."""

    def change(each: Any) -> None:
        for key in path[:-1]:
            each = each[key]
        each[path[-1]] = value

    return change


CLUSTER = ("spec", "rayClusterSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)


@pytest.mark.parametrize(
    "change",
    [
        put("apiVersion", value="ray.io/v1alpha1"),
        put("spec", "entryPoint", value="python x.py"),
        put("spec", "runtimeEnvYAML", value={"env_vars": {}}),
        put("spec", "backoffLimit", value="2"),
        put(*CLUSTER, "headGroupSpec", "rayStartParams", value={"num-cpus": 0}),
        put(*CLUSTER, "enableInTreeAutoscaling", value="true"),
        put(*WORKERS, value={"groupName": "exits"}),
        put(*WORKERS, "groupName", value="Exits"),
        put(
            *WORKERS, "template", "spec", "containers", 0, "resources", "limits", value={"nvidia.com/gpu": 1}
        ),
    ],
)
def test_the_shape_is_strict(objects: list[Object], change: Callable[[Object], None]) -> None:
    (job,) = [copy.deepcopy(each) for each in objects if each["kind"] == "RayJob"]
    change(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, KINDS["RayJob"])


def test_volumes_are_claimed_and_mounted(objects: list[Object], job: Object) -> None:
    claims = {each["metadata"]["name"] for each in objects if each["kind"] == "PersistentVolumeClaim"}
    cluster = job["rayClusterSpec"]
    pods = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    pods += [each["spec"]["template"] for each in objects if each["kind"] == "Deployment"]
    claimed = set()
    for pod in pods:
        volumes = {each["name"]: each["persistentVolumeClaim"] for each in pod["spec"].get("volumes", [])}
        claimed |= {each["claimName"] for each in volumes.values()}
        (container,) = pod["spec"]["containers"]
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes.keys()
    assert claimed == claims


def test_the_run_reads_and_writes_what_is_mounted(run: RunConfig, workers: Object) -> None:
    (container,) = workers["template"]["spec"]["containers"]
    read_only = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    data, storage = PurePosixPath(run.data.path), PurePosixPath(run.storage.path)
    assert any(data.is_relative_to(path) for path in read_only)
    (writable,) = [path for path, only in read_only.items() if not only]
    assert storage.is_relative_to(writable)
    assert run.storage.name and run.storage.resume  # a retry goes on


def test_the_gpu_nodes_hold_the_run(run: RunConfig, workers: Object) -> None:
    exits = get_recipe("imagenet-msdnet-metagf").model.msdnet.exits
    resources = run.resources
    (container,) = workers["template"]["spec"]["containers"]
    amounts = container["resources"]["limits"]
    assert container["resources"]["requests"] == amounts
    for cpus, gpus in (
        (resources.cpus_per_exit, resources.gpus_per_exit),
        (resources.driver_cpus, resources.driver_gpus),
    ):
        assert (cpus, gpus) == (float(amounts["cpu"]), float(amounts["nvidia.com/gpu"]))
    assert run.data.workers < resources.cpus_per_exit
    assert workers["minReplicas"] == 0 and workers["maxReplicas"] == exits + 1
    assert resources.wait_for_resources_s > 0 and run.compute.device == "cuda"


def test_the_run_is_tracked_by_the_server_beside_it(objects: list[Object], job: Object) -> None:
    (service,) = [each for each in objects if each["kind"] == "Service"]
    (server,) = [each["spec"] for each in objects if each["kind"] == "Deployment"]
    variables = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in variables.values())
    uri = urlsplit(variables["MLFLOW_TRACKING_URI"])
    (port,) = service["spec"]["ports"]
    assert (uri.hostname, uri.port) == (service["metadata"]["name"], port["port"])
    labels = server["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == server["selector"]["matchLabels"] == labels

    (container,) = server["template"]["spec"]["containers"]
    program, *words = [*container["command"], *container["args"]]
    asked = parse_mlflow(words)
    assert program == "mlflow" and words[0] == "server"
    assert asked["port"] == port["targetPort"] == container["ports"][0]["containerPort"]
    assert asked["serve_artifacts"] and uri.netloc in asked["allowed_hosts"].split(",")
    (mount,) = container["volumeMounts"]
    assert asked["backend_store_uri"].startswith(f"sqlite:///{mount['mountPath']}/")
    assert asked["artifacts_destination"].startswith(f"{mount['mountPath']}/")
