"""Ray's launcher files, the image, the Kubernetes file, and what a submitted job uploads.

Each as its program reads it (Kubernetes' as kuberay_schema.py has it), and all that they name is there.
"""

import copy
import json
import re
import shlex
import shutil
import subprocess
import tomllib
import zipfile
from functools import reduce
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from command_lines import REPOSITORY, check, commands, parse_click, parse_job
from kuberay_schema import KINDS
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from raygf.config.recipes import get_recipe

DEPLOY = REPOSITORY / "deploy"
AWS, LOCAL = REPOSITORY / "cluster.yaml", DEPLOY / "local.yaml"
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *STARTS,
)
IMAGE = re.compile(r"rayproject/ray:(\d+\.\d+\.\d+)-py3(\d+)-(cpu|gpu)")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
launcher_files = pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)


def load(path):
    """The objects of a YAML file; of one with a single object that object."""
    found = [*yaml.safe_load_all(path.read_text())]
    return found if len(found) > 1 else found[0]


@launcher_files
def test_ray_accepts_its_launchers_file_and_would_refuse_a_misspelt_field(path):
    validate_config(prepare_config(load(path)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**load(path), "idle_timeout_minute": 10}))


@launcher_files
def test_what_nodes_run_and_mount_is_there(path):
    config = load(path)
    mounts = config["file_mounts"]
    for remote, local in mounts.items():
        if remote.endswith("/.ray/auth_token"):
            assert local == "~/.ray/auth_token"
        else:
            assert (REPOSITORY / local).is_dir()  # Docker does not follow updates of single files

    def here(word):
        """``word`` with a path on the nodes replaced by what is mounted there."""
        for remote, local in mounts.items():
            if word == remote or word.startswith(f"{remote}/"):
                return local + word.removeprefix(remote)
        return word

    for words in commands("\n".join(line for field in COMMANDS for line in config.get(field, []))):
        check([here(word) for word in words])


@launcher_files
def test_nodes_start_ray_as_one_cluster_with_tokens_and_then_mlflow(path):
    config = load(path)
    lines = [[line for line in config[field] if "ray start" in line] for field in STARTS]
    (head_line,), (worker_line,) = lines
    (head, worker) = (
        parse_click("ray", words[1:])
        for line in (head_line, worker_line)
        for words in commands(line)
        if words[:2] == ["ray", "start"]
    )
    assert head["head"] and not worker["head"]
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    options = config.get("docker", {}).get("run_options", [])
    on = [f"{line} {' '.join(options)}" for line in (head_line, worker_line)]
    assert all("RAY_AUTH_MODE=token" in line for line in on)
    assert any(remote.endswith("/.ray/auth_token") for remote in config["file_mounts"])
    *_, before, last = config["head_start_ray_commands"]
    assert before == head_line and "/start_mlflow.sh " in last


def test_aws_exits_come_with_gpus_and_from_none():
    config = load(AWS)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head" and set(types) == {"head", "exits"}
    assert (types["head"]["min_workers"], types["head"]["max_workers"]) == (0, 0)
    assert types["exits"]["min_workers"] == 0 < types["exits"]["max_workers"] <= config["max_workers"]
    (head,), (worker,) = (IMAGE.findall(config["docker"][key]) for key in ("head_image", "worker_image"))
    assert (head[2], worker[2]) == ("cpu", "gpu")


def test_aws_policies_are_whole_and_for_the_bucket_and_profiles_of_the_cluster():
    statements = {}
    for path in (DEPLOY / "aws").glob("*.json"):
        policy = json.loads(path.read_text())
        assert policy.keys() == {"Version", "Statement"} and policy["Version"] == "2012-10-17"
        who = "Principal" if path.name == "trust.json" else "Resource"
        for statement in policy["Statement"]:
            assert statement.keys() == {"Effect", "Action", who} and statement["Effect"] == "Allow"
        statements[path.stem] = policy["Statement"]
    (bucket,) = set(re.findall(r"s3://([\w-]+)", AWS.read_text()))
    resources = [each["Resource"] for each in statements["bucket"]]
    assert resources == [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    types = load(AWS)["available_node_types"]
    profiles = {key: node["node_config"]["IamInstanceProfile"]["Name"] for key, node in types.items()}
    assert profiles == {"head": "raygf-head", "exits": "raygf-worker"}
    (passed,) = [each["Resource"] for each in statements["launch"] if each["Action"] == "iam:PassRole"]
    assert passed.endswith(f":role/{profiles['exits']}")


def test_versions_and_packages_are_those_of_the_project():
    def numbers(version):
        return tuple(int(part) for part in version.split("."))

    texts = {path: path.read_text() for path in (AWS, LOCAL, DEPLOY / "Dockerfile", DEPLOY / "rayjob.yaml")}
    images = {found[:2] for path in (AWS, DEPLOY / "Dockerfile") for found in IMAGE.findall(texts[path])}
    ((version, minor),) = images
    assert f"'ray[default,train,tune]=={version}'" in texts[LOCAL]
    assert f'rayVersion: "{version}"' in texts[DEPLOY / "rayjob.yaml"]
    (least,) = re.findall(r"\bray\[.*>=([\d.]+)", "\n".join(PROJECT["dependencies"]))
    assert numbers(version) >= numbers(least)
    assert (3, int(minor)) >= numbers(PROJECT["requires-python"].removeprefix(">="))
    lines = (DEPLOY / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == PROJECT["dependencies"]


def test_the_image_is_made_of_what_is_there_and_not_left_out():
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    sources = {word for copied in copies for word in copied.split() if not word.startswith("--")}
    assert kept[0] == "*" and {f"!{source}" for source in sources} == {x for x in kept if x.startswith("!")}
    assert all((REPOSITORY / source).exists() for source in sources)


OBJECTS = load(DEPLOY / "rayjob.yaml")


def specs(kind):
    """The specifications of the objects of a kind in the Kubernetes file, by name."""
    return {each["metadata"]["name"]: each["spec"] for each in OBJECTS if each["kind"] == kind}


(JOB,) = specs("RayJob").values()
(WORKERS,) = JOB["rayClusterSpec"]["workerGroupSpecs"]


def test_every_object_has_the_shape_of_its_kind():
    assert {each["kind"] for each in OBJECTS} == KINDS.keys()
    for each in OBJECTS:
        jsonschema.validate(each, KINDS[each["kind"]])


GPU_AS_NUMBER = {"name": "a", "image": "b", "resources": {"limits": {"nvidia.com/gpu": 1}}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "ray.io/v1alpha1"),
        ("spec.entryPoint", "python x.py"),
        ("spec.runtimeEnvYAML", {"env_vars": {}}),
        ("spec.backoffLimit", "2"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams", {"num-cpus": 0}),
        ("spec.rayClusterSpec.enableInTreeAutoscaling", "true"),
        ("spec.rayClusterSpec.workerGroupSpecs", [{"groupName": "exits"}]),
        ("spec.rayClusterSpec.workerGroupSpecs", [{**WORKERS, "groupName": "Exits"}]),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers", [GPU_AS_NUMBER]),
    ],
)
def test_the_shape_is_strict(path, value):
    job = copy.deepcopy(next(each for each in OBJECTS if each["kind"] == "RayJob"))
    *outer, last = path.split(".")
    reduce(dict.__getitem__, outer, job)[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, KINDS["RayJob"])


def test_volumes_are_claimed_and_mounted():
    cluster = JOB["rayClusterSpec"]
    pods = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    claimed = set()
    for pod in (*pods, *(each["template"] for each in specs("Deployment").values())):
        volumes = {each["name"]: each["persistentVolumeClaim"] for each in pod["spec"].get("volumes", [])}
        claimed |= {each["claimName"] for each in volumes.values()}
        (container,) = pod["spec"]["containers"]
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes.keys()
    assert claimed == specs("PersistentVolumeClaim").keys()


def test_the_gpu_nodes_hold_the_run_and_what_it_reads_and_writes():
    python, program, *argv = shlex.split(JOB["entrypoint"])
    assert (python, program) == ("python", "/home/ray/raygf/jobs/imagenet.py")
    assert "WORKDIR /home/ray/raygf" in (DEPLOY / "Dockerfile").read_text()
    run = parse_job("imagenet", argv)
    (container,) = WORKERS["template"]["spec"]["containers"]
    read_only = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert any(PurePosixPath(run.data.path).is_relative_to(path) for path in read_only)
    (writable,) = [path for path, only in read_only.items() if not only]
    assert PurePosixPath(run.storage.path).is_relative_to(writable)
    assert run.storage.name and run.storage.resume  # a retry goes on
    resources, amounts = run.resources, container["resources"]["limits"]
    assert container["resources"]["requests"] == amounts
    node = (float(amounts["cpu"]), float(amounts["nvidia.com/gpu"]))
    assert node == (resources.cpus_per_exit, resources.gpus_per_exit)
    assert node == (resources.driver_cpus, resources.driver_gpus)
    assert run.data.workers < resources.cpus_per_exit
    exits = get_recipe("imagenet-msdnet-metagf").model.msdnet.exits
    assert WORKERS["minReplicas"] == 0 and WORKERS["maxReplicas"] == exits + 1
    assert resources.wait_for_resources_s > 0 and run.compute.device == "cuda"


def test_the_run_is_tracked_by_the_server_beside_it():
    ((host, service),) = specs("Service").items()
    (server,) = specs("Deployment").values()
    variables = yaml.safe_load(JOB["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in variables.values())
    uri = urlsplit(variables["MLFLOW_TRACKING_URI"])
    (port,) = service["ports"]
    assert (uri.hostname, uri.port) == (host, port["port"])
    labels = server["template"]["metadata"]["labels"]
    assert service["selector"] == server["selector"]["matchLabels"] == labels

    (container,) = server["template"]["spec"]["containers"]
    program, *words = [*container["command"], *container["args"]]
    asked = parse_click(program, words)
    assert program == "mlflow" and words[0] == "server"
    assert asked["port"] == port["targetPort"] == container["ports"][0]["containerPort"]
    assert asked["serve_artifacts"] and uri.netloc in asked["allowed_hosts"].split(",")
    (mount,) = container["volumeMounts"]
    assert asked["backend_store_uri"].startswith(f"sqlite:///{mount['mountPath']}/")
    assert asked["artifacts_destination"].startswith(f"{mount['mountPath']}/")


CODE = "raygf/rounds/driver.py raygf/models/msdnet.py jobs/digits.py tune_spaces/fusion_lr.py mine.py"
LEFT = """
    .git/HEAD .venv/bin/python .hypothesis/x .ci/run tests/unit/test_x.py docs/images/a.png benchmarks/b.py
    deploy/local.yaml cluster.yaml Makefile CHANGELOG.md mlflow.db mlflow.db-wal mlartifacts/1/m.bin
    runs/one/round-000001.npz data/cifar10/x.bin results/a.csv figures/a.png toy/eq7.md
    raygf/__pycache__/x.pyc raygf.egg-info/PKG-INFO some.parquet weights.npz photos.tar
"""


def packed(folder, tmp_path):
    """Files in the package that ``ray job submit --working-dir`` makes of a folder, and its size in bytes."""
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}, package.stat().st_size


def test_a_copy_that_has_been_used_uploads_its_code_alone(tmp_path):
    folder = tmp_path / "copy"
    for name in (*LEFT.split(), *CODE.split()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    assert packed(folder, tmp_path)[0] == {*CODE.split(), ".gitignore", ".rayignore"}


def test_this_repository_uploads_less_than_a_megabyte(tmp_path):
    """docs/cluster.md says so."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    if listed.returncode:
        pytest.skip("not a git checkout")
    known = {name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()}
    files, size = packed(REPOSITORY, tmp_path)
    code = {name for name in known if name.startswith(("raygf/", "jobs/", "tune_spaces/"))}
    code = {name for name in code if not name.startswith("raygf/serving/cifar10/")}
    assert files & known == code | ({".gitignore", ".rayignore", "README.md", "pyproject.toml"} & known)
    assert size < 1_000_000
