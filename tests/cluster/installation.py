"""The operator in a cluster, by Helm from our chart, as a user installs it; and inputs for jobs in the cluster's S3."""

import base64
import json
import os
import random
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.storage import ObjectStore, open_store
from tests.cluster.local.cluster import Cluster
from tests.support.models import CORPUS, make_bert, make_llama
from tests.tools import build

CHART = Path(__file__).parents[2] / "charts" / "finetune-operator"
RELEASE = "finetune-operator"
SYSTEM = "finetune-system"
BUCKET = "finetune"
CREDENTIALS = "s3-credentials"
HELM_SECONDS = 180
IMAGES = {
    "image": {"repository": "localhost/finetune-operator", "tag": "dev"},
    "trainerImage": {"repository": "localhost/finetune-trainer", "tag": "dev"},
}
# quicker than in production, so that a test need not wait to see it
EARLIER_QUICK = {"operator": {"pollSeconds": 1, "progressSeconds": 1, "leaseSeconds": 6, "nodeTolerationSeconds": 5}}
QUICK = {"operator": {**EARLIER_QUICK["operator"], "serverStartSeconds": 3}}  # the earlier chart refuses what is new


@dataclass(frozen=True)
class Installation:
    """The operator's release in a cluster."""

    cluster: Cluster

    def helm(self, *arguments: str, values: Mapping[str, Any] | None = None, check: bool = True) -> str:
        """What helm says, stdout and stderr."""
        command = [str(build("helm")), *arguments, f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={SYSTEM}"]
        if values is not None:
            command.append("--values=-")
        folders = {f"HELM_{name}_HOME": str(self.cluster.state.folder / "helm") for name in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            command,
            input=json.dumps(values) if values is not None else None,  # JSON is YAML
            capture_output=True,
            text=True,
            timeout=HELM_SECONDS,
            env={**os.environ, **folders},
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"helm {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def install(self, values: Mapping[str, Any] = QUICK, chart: Path = CHART, *options: str) -> str:
        """`helm upgrade --install --wait`: returns when the operator is ready."""
        options = ("--install", "--create-namespace", "--wait", "--timeout=150s", *options)
        return self.helm("upgrade", RELEASE, str(chart), *options, values=_merged(IMAGES, values))

    def uninstall(self) -> str:
        """`helm uninstall --wait`."""
        return self.helm("uninstall", RELEASE, "--wait", "--timeout=60s")

    @property
    def pods(self) -> list[str]:
        """Names of the operator's pods."""
        items = self.cluster.get("pods", f"--namespace={SYSTEM}", "--selector=app.kubernetes.io/name=finetune-operator")
        return [item["metadata"]["name"] for item in items["items"] if "deletionTimestamp" not in item["metadata"]]

    def logs(self) -> str:
        """What the operator's replicas said."""
        told = [self.cluster.kubectl("logs", name, f"--namespace={SYSTEM}", check=False) for name in self.pods]
        return "\n".join(told)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Values over values, object by object, as Helm merges them."""
    merged = dict(first)
    for name, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def bucket(cluster: Cluster, name: str = BUCKET) -> ObjectStore:
    """A bucket of the cluster's S3, made if it is not there."""
    if not (cluster.s3.folder / name).exists():
        cluster.s3.make_bucket(name)
    return open_store(f"s3://{name}", cluster.s3.environ)


def put_folder(store: ObjectStore, folder: Path, prefix: str) -> str:
    """Uploads the files of a folder; returns its uri."""
    for path in sorted(folder.iterdir()):
        store.put_file(f"{prefix}/{path.name}", path)
    return f"{store.uri}/{prefix}"


def put_rows(store: ObjectStore, rows: Iterable[Mapping[str, Any] | str], key: str) -> str:
    """Uploads JSON lines; a string goes as it is. Returns the uri."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    store.put(key, ("\n".join(lines) + "\n").encode())
    return f"{store.uri}/{key}"


def add_credentials(cluster: Cluster, namespace: str) -> None:
    """The Secret with the keys of the cluster's S3."""
    keys = {"AWS_ACCESS_KEY_ID": cluster.s3.access_key, "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": CREDENTIALS, "namespace": namespace},
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()},
    }
    cluster.kubectl("apply", "--filename=-", input=json.dumps(secret))


@dataclass(frozen=True)
class Inputs:
    """What jobs are made of: uris in the cluster's S3, and the same models as folders here."""

    llama: str
    bert: str
    texts: str
    prompts: str
    words: str
    llama_folder: Path
    bert_folder: Path


WORDS = {
    "good": "great lovely best fine happy",
    "bad": "awful poor worst sad angry",
    "post": "parcel order price refund",
}


def make_inputs(cluster: Cluster, folder: Path) -> Inputs:
    """Two tiny models, texts, prompts with completions, and labelled words as CSV."""
    store = bucket(cluster)
    llama, bert = make_llama(folder / "llama"), make_bert(folder / "bert")
    source = random.Random(7)
    texts = [{"text": f"{source.choice(CORPUS)} {source.choice(CORPUS)} {number}"} for number in range(320)]
    prompts = [
        {"prompt": f"The word is {word}.", "completion": f" Yes, {word}!"}
        for word in source.choices(["great", "poor", "invoice"], k=160)
    ]
    lines = ["text,label"]
    for _ in range(300):
        label = source.choice(list(WORDS))
        lines.append(" ".join(source.choices(WORDS[label].split(), k=5)) + f",{label}")
    store.put("data/words.csv", ("\n".join(lines) + "\n").encode())
    return Inputs(
        llama=put_folder(store, llama, "models/llama"),
        bert=put_folder(store, bert, "models/bert"),
        texts=put_rows(store, texts, "data/texts.jsonl"),
        prompts=put_rows(store, prompts, "data/prompts.jsonl"),
        words=f"{store.uri}/data/words.csv",
        llama_folder=llama,
        bert_folder=bert,
    )
