"""The shape of KubeRay's RayJob (ray.io/v1, as of KubeRay 1.5) and of the Kubernetes objects beside it.

Only the fields that deploy/rayjob.yaml has; others are errors. Names, types and what is required are those of
KubeRay's API types (RayJobSpec, RayClusterSpec, HeadGroupSpec, WorkerGroupSpec) and of Kubernetes.
"""

import yaml

WORDS = {
    "count": {"type": "integer", "minimum": 0},
    "flag": {"type": "boolean"},
    "string": {"type": "string"},
    "text": {"type": "string", "minLength": 1},
    "name": {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
    "quantity": {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"},
}
SPECS = """
v1 PersistentVolumeClaim:
  accessModes: [ReadWriteOnce|ReadOnlyMany|ReadWriteMany]
  resources: {requests: {storage: quantity}}
  storageClassName~: text
v1 Service:
  selector: &texts {"*": string}
  ports: [{port: count, name~: name, targetPort~: count}]
apps/v1 Deployment:
  selector: {matchLabels: *texts}
  replicas~: count
  strategy~: {type: Recreate|RollingUpdate}
  template: &pod
    metadata~: {labels~: *texts}
    spec:
      containers:
        - name: name
          image: text
          command~: [text]
          args~: [text]
          ports~: [{containerPort: count, name~: name}]
          readinessProbe~: {httpGet: {path: text, port: count}}
          resources: {requests~: &amounts {"*": quantity}, limits~: *amounts}
          volumeMounts~: [{name: name, mountPath: text, readOnly~: flag}]
      volumes~: [{name: name, persistentVolumeClaim: {claimName: name}}]
      tolerations~: [{key: text, operator: Exists|Equal, effect~: NoSchedule|PreferNoSchedule|NoExecute}]
      securityContext~: {fsGroup~: count}
ray.io/v1 RayJob:
  entrypoint: text
  runtimeEnvYAML~: text
  submissionMode~: K8sJobMode|HTTPMode|InteractiveMode|SidecarMode
  backoffLimit~: count
  shutdownAfterJobFinishes~: flag
  ttlSecondsAfterFinished~: count
  rayClusterSpec:
    rayVersion~: text
    enableInTreeAutoscaling~: flag
    autoscalerOptions~: {upscalingMode~: Default|Aggressive|Conservative, idleTimeoutSeconds~: count}
    authOptions~: {mode: token|disabled}
    headGroupSpec: {rayStartParams: *texts, template: *pod}
    workerGroupSpecs~:
      - groupName: name
        replicas~: count
        minReplicas: count
        maxReplicas: count
        rayStartParams: *texts
        template: *pod
"""
"""Fields with "~" may be missing, "*" stands for any fields, a list has one or more of its item."""


def schema(shape):
    """A shape as JSON Schema."""
    if isinstance(shape, str):
        return WORDS.get(shape, {"enum": shape.split("|")})
    if isinstance(shape, list):
        return {"type": "array", "items": schema(shape[0]), "minItems": 1}
    if "*" in shape:
        return {"type": "object", "additionalProperties": schema(shape["*"])}
    required = [name for name in shape if not name.endswith("~")]
    fields = {name.rstrip("~"): schema(of) for name, of in shape.items()}
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


KINDS = {
    kind: schema({"apiVersion": version, "kind": kind, "metadata": {"name": "name"}, "spec": spec})
    for (version, kind), spec in ((key.split(), spec) for key, spec in yaml.safe_load(SPECS).items())
}
