"""The shape of KubeRay's RayJob (ray.io/v1, as of KubeRay 1.5) and of the Kubernetes objects beside it.

As far as this project uses them, and strictly: fields that are not listed are errors. Field names, types and
what is required are those of KubeRay's API types (RayJobSpec, RayClusterSpec, HeadGroupSpec, WorkerGroupSpec)
and of Kubernetes' core and apps groups.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}


def record(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object with these fields and no others."""
    fields = {**required, **optional}
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def several(items: Schema, least: int = 1) -> Schema:
    """A list of them."""
    return {"type": "array", "items": items, "minItems": least}


def kind(version: str, name: str, spec: Schema) -> Schema:
    """A whole object of the kind ``name``."""
    metadata = record({"name": NAME}, labels=TEXTS, annotations=TEXTS, namespace=NAME)
    head = {"apiVersion": {"const": version}, "kind": {"const": name}}
    return record({**head, "metadata": metadata, "spec": spec})


AMOUNTS: Schema = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = record({}, requests=AMOUNTS, limits=AMOUNTS)
CONTAINER = record(
    {"name": NAME, "image": TEXT, "resources": RESOURCES},
    command=several(TEXT),
    args=several(TEXT),
    env=several(record({"name": TEXT, "value": {"type": "string"}})),
    ports=several(record({"containerPort": PORT}, name=NAME)),
    readinessProbe=record({"httpGet": record({"path": TEXT, "port": PORT})}),
    volumeMounts=several(record({"name": NAME, "mountPath": TEXT}, readOnly=FLAG)),
)
VOLUME = record({"name": NAME, "persistentVolumeClaim": record({"claimName": NAME})})
TOLERATION = record(
    {"key": TEXT, "operator": {"enum": ["Exists", "Equal"]}},
    effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
    value=TEXT,
)
POD = record(
    {
        "spec": record(
            {"containers": several(CONTAINER)},
            volumes=several(VOLUME),
            tolerations=several(TOLERATION),
            securityContext=record({}, fsGroup=COUNT),
        )
    },
    metadata=record({}, labels=TEXTS),
)

HEAD_GROUP = record(
    {"rayStartParams": TEXTS, "template": POD},
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    enableIngress=FLAG,
)
WORKER_GROUP = record(
    {"groupName": NAME, "minReplicas": COUNT, "maxReplicas": COUNT, "rayStartParams": TEXTS, "template": POD},
    replicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
)
RAY_CLUSTER = record(
    {"headGroupSpec": HEAD_GROUP},
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=record(
        {},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT,
        resources=RESOURCES,
    ),
    authOptions=record({"mode": {"enum": ["token", "disabled"]}}),
    workerGroupSpecs=several(WORKER_GROUP),
)
RAY_JOB = kind(
    "ray.io/v1",
    "RayJob",
    record(
        {"entrypoint": TEXT, "rayClusterSpec": RAY_CLUSTER},
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        suspend=FLAG,
        metadata=TEXTS,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
    ),
)
CLAIM = kind(
    "v1",
    "PersistentVolumeClaim",
    record(
        {
            "accessModes": several({"enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"]}),
            "resources": record({"requests": record({"storage": QUANTITY})}),
        },
        storageClassName=TEXT,
    ),
)
SERVICE = kind(
    "v1",
    "Service",
    record({"selector": TEXTS, "ports": several(record({"port": PORT}, name=NAME, targetPort=PORT))}),
)
DEPLOYMENT = kind(
    "apps/v1",
    "Deployment",
    record(
        {"selector": record({"matchLabels": TEXTS}), "template": POD},
        replicas=COUNT,
        strategy=record({"type": {"enum": ["Recreate", "RollingUpdate"]}}),
    ),
)
KINDS = {
    "RayJob": RAY_JOB,
    "PersistentVolumeClaim": CLAIM,
    "Service": SERVICE,
    "Deployment": DEPLOYMENT,
}
