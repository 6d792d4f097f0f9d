"""Manifests that serve an artifact on a cluster: an InferenceService of KServe, and plain objects of vLLM. Pure.

vLLM reads the tokenizer and the end tokens of a base model. An adapter may have been taught others, which lie
beside it: the server is told to read those.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api import yaml12
from finetune_api.contract import ACCESS_KEY_ID, SECRET_ACCESS_KEY, Env
from finetune_api.v1alpha1.spec import FineTuneJobSpec
from finetune_trainer.serving.vllm_rules import adapter_flags, vllm_version

KSERVE, VLLM = "serving/kserve.yaml", "serving/vllm.yaml"  # within an artifact
FOLDER_URI = "s3://BUCKET/PREFIX"  # stands for a place that pods can read, if the storage is a folder
FETCHER = "docker.io/amazon/aws-cli:2.31.0"
SERVER = f"docker.io/vllm/vllm-openai:v{vllm_version()}"
MOUNTED = "/mnt/models"  # where KServe puts files
PORT = 8000
USER_VARIABLE = "HF_TOKEN"


@dataclass(frozen=True)
class ServingAccess:
    """What a server needs to read the artifact, as the job has it.

    Attributes:
        endpoint, region: of the storage; empty = those of AWS.
        secret: name of the Secret with the keys of the storage; empty = the pods need none.
        authority: name of the Secret with the CA certificate of the endpoint; empty = a public one.
        token: name and key of the Secret with the hub's token; empty = the base model is public.
    """

    endpoint: str = ""
    region: str = ""
    secret: str = ""
    authority: str = ""
    token: tuple[str, str] | None = None

    @classmethod
    def of(cls, spec: FineTuneJobSpec) -> "ServingAccess":
        """Return what a job names."""
        storage, token = spec.storage, spec.model.token_secret_ref
        keys, authority = storage.credentials_secret_ref, storage.ca_secret_ref
        return cls(
            storage.endpoint or "",
            storage.region or "",
            keys.name if keys else "",
            authority.name if authority else "",
            (token.name, token.key) if token else None,
        )


NO_ACCESS = ServingAccess()


@dataclass(frozen=True)
class ServedArtifact:
    """An artifact that vLLM serves.

    Attributes:
        job: name of the job.
        uri: of the artifact.
        lora: LoraConfig names and values of an adapter; None for a whole model.
        base: of an adapter: name on the hub, or URI of the mirror in the storage.
        commit: of the base model on the hub; None for a mirror.
        pools: whether the model returns vectors or labels, and writes no text.
    """

    job: str
    uri: str
    lora: Mapping[str, Any] | None = None
    base: str = ""
    commit: str | None = None
    pools: bool = False

    @property
    def name(self) -> str:
        """The name of the objects and of the model in requests."""
        return self.job if self.job[:1].isalpha() else f"model-{self.job}"

    def command(self, artifact: str, base: str = "") -> list[str]:
        """Return the arguments of `vllm serve`.

        Args:
            artifact: folder of the artifact.
            base: folder of the base model; empty = the hub has it.
        """
        if self.lora is None:
            return [artifact, "--served-model-name", self.name, *(["--runner", "pooling"] if self.pools else [])]
        return [base or self.base, *self._of_base(artifact), *adapter_flags(self.lora, self.name, artifact)]

    def _of_base(self, artifact: str) -> list[str]:
        pinned = ["--revision", self.commit] if self.commit else []
        own = ["--tokenizer", artifact, "--generation-config", artifact]
        return [*pinned, "--served-model-name", f"{self.name}-base", *own]


def manifests(served: ServedArtifact, access: ServingAccess) -> dict[str, str]:
    """Return the manifests by their paths within the artifact."""
    return {KSERVE: _kserve(served, access), VLLM: _vllm(served, access)}


def pod_uri(uri: str) -> str:
    """Return the URI of a place as pods see it: a folder of this machine is none."""
    return uri if uri.startswith("s3://") else f"{FOLDER_URI}/{uri.rstrip('/').rpartition('/')[2]}"


# ---------------------------------------------------------------- KServe


def _kserve(served: ServedArtifact, access: ServingAccess) -> str:
    uri, predictor = pod_uri(served.uri), {}
    model: dict[str, Any] = {"modelFormat": {"name": "huggingface"}}
    if served.lora is None:
        model |= {"args": [] if served.pools else ["--backend=vllm"], "storageUri": uri}
    elif served.commit:
        of_base = [f"--model_id={served.base}", f"--model_revision={served.commit}"]
        model |= {"args": _lora_args(served, of_base, MOUNTED), "storageUri": uri}
    else:
        artifact, base = f"{MOUNTED}/adapter", f"{MOUNTED}/base"
        model["args"] = _lora_args(served, [f"--model_dir={base}"], artifact)
        places = {artifact: uri, base: pod_uri(served.base)}
        predictor["storageUris"] = [{"uri": place, "mountPath": path} for path, place in places.items()]
    if served.commit and access.token:
        model["env"] = [_token(access.token)]
    model["resources"] = _resources()
    account = {"serviceAccountName": f"{served.name}-storage"} if access.secret else {}
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": served.name},
        "spec": {"predictor": {**account, **predictor, "model": model}},
    }
    lines = [
        f"Serves the model with KServe and vLLM: kubectl apply -f {KSERVE}",
        *_folder_lines(served),
        *_kserve_keys(served, access),
        *_use_lines(served, "the host in the status of the InferenceService", "/openai/v1"),
    ]
    return _text(lines, [document])


def _lora_args(served: ServedArtifact, of_base: list[str], artifact: str) -> list[str]:
    """Return the arguments of KServe's server for an adapter. Its own name is that of the base model in requests."""
    assert served.lora is not None
    own = [f"--tokenizer={artifact}", f"--generation-config={artifact}"]
    name = f"--model_name={served.name}-base"
    return ["--backend=vllm", name, *of_base, *own, *adapter_flags(served.lora, served.name, artifact)]


def _kserve_keys(served: ServedArtifact, access: ServingAccess) -> list[str]:
    if not access.secret:
        return ["The pods need read access to the storage, for example by web identity."]
    server = re.sub(r"^https?://", "", access.endpoint) or "s3.amazonaws.com"
    plain = "0" if access.endpoint.startswith("http://") else "1"
    notes = {"s3-endpoint": server, "s3-usehttps": plain, "s3-region": access.region}
    annotations = " ".join(f"serving.kserve.io/{key}={value}" for key, value in notes.items() if value)
    lines = [
        f"Credentials: the Secret {access.secret} with {ACCESS_KEY_ID.name} and {SECRET_ACCESS_KEY.name}, which KServe",
        "finds through a service account. Make it once:",
        f"  kubectl annotate secret {access.secret} {annotations}",
        f"  kubectl create serviceaccount {served.name}-storage",
        f"""  kubectl patch serviceaccount {served.name}-storage -p '{{"secrets":[{{"name":"{access.secret}"}}]}}'""",
    ]
    if access.authority:
        lines.append("The endpoint has a CA certificate of its own: set serving.kserve.io/s3-cabundle-configmap.")
    return lines


# ---------------------------------------------------------------- vLLM alone


def _vllm(served: ServedArtifact, access: ServingAccess) -> str:
    places = {"artifact": pod_uri(served.uri)}
    if served.lora is not None and not served.commit:
        places["base"] = pod_uri(served.base)
    command = served.command(f"{MOUNTED}/artifact", f"{MOUNTED}/base" if "base" in places else "")
    labels = {"app.kubernetes.io/name": served.name}
    files = {"name": "models", "mountPath": MOUNTED}
    server: dict[str, Any] = {
        "name": "vllm",
        "image": SERVER,
        "command": ["vllm", "serve"],
        "args": [*command, "--port", str(PORT)],
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "failureThreshold": 180},
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}},
        "resources": _resources(),
        "volumeMounts": [{**files, "readOnly": True}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    if served.commit and access.token:
        server["env"] = [_token(access.token)]
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "initContainers": [_fetch(name, uri, access, files) for name, uri in places.items()],
        "containers": [server],
        "volumes": [{"name": "models", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    if access.authority:
        pod["volumes"].append({"name": "authority", "secret": {"secretName": access.authority}})
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": served.name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "Recreate"},  # a second pod would need a second GPU
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": served.name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }
    keys = f"Credentials: the Secret {access.secret} with {ACCESS_KEY_ID.name} and {SECRET_ACCESS_KEY.name}, which the"
    lines = [
        f"Serves the model with vLLM alone: kubectl apply -f {VLLM}",
        *_folder_lines(served),
        *([keys, "job used. Only the container that fetches the files gets them."] if access.secret else []),
        *([] if access.secret else ["The pod needs read access to the storage, for example by web identity."]),
        *_use_lines(served, f"http://{served.name}:{PORT}", "/v1"),
    ]
    return _text(lines, [deployment, service])


def _fetch(name: str, uri: str, access: ServingAccess, files: Mapping[str, Any]) -> dict[str, Any]:
    """Return the container that copies files from the storage."""
    values = {Env.STORAGE_ENDPOINT: access.endpoint, Env.STORAGE_REGION: access.region}
    if access.authority:
        values[Env.STORAGE_CA] = "/etc/authority/ca.crt"
    container: dict[str, Any] = {
        "name": f"fetch-{name}",
        "image": FETCHER,
        "args": ["s3", "cp", "--recursive", "--only-show-errors", f"{uri}/", f"{files['mountPath']}/{name}/"],
        "volumeMounts": [dict(files)],
    }
    if env := [{"name": str(key), "value": value} for key, value in values.items() if value]:
        container["env"] = env
    if access.secret:
        container["envFrom"] = [{"secretRef": {"name": access.secret}}]
    if access.authority:
        container["volumeMounts"].append({"name": "authority", "mountPath": "/etc/authority", "readOnly": True})
    return container


# ---------------------------------------------------------------- both


def _resources() -> dict[str, Any]:
    return {"limits": {"nvidia.com/gpu": "1"}}


def _token(token: tuple[str, str]) -> dict[str, Any]:
    return {"name": USER_VARIABLE, "valueFrom": {"secretKeyRef": {"name": token[0], "key": token[1]}}}


def _folder_lines(served: ServedArtifact) -> list[str]:
    if served.uri.startswith("s3://"):
        return []
    return [f"Pods cannot read the storage of this run: copy the files to S3, and replace {FOLDER_URI} below."]


def _use_lines(served: ServedArtifact, host: str, path: str) -> list[str]:
    of_base = f"; {served.name}-base is the base model" if served.lora is not None else ""
    lines = [f"The API is that of OpenAI, at {host}{path if host.startswith('http') else f' with {path}'}."]
    lines.append(f"The name of the model in requests is {served.name}{of_base}.")
    return [*lines, "For a model that needs several GPUs raise the limit, and add --tensor-parallel-size to the args."]


def _text(lines: list[str], documents: list[Any]) -> str:
    head = "".join(f"# {line}\n" for line in lines)
    return head + "---\n".join(yaml12.dump(one) for one in documents)
