"""`make demo`: the whole road on a real Kubernetes of two nodes: cluster, helm install, kubectl apply, Succeeded.

Everything it needs is made here: the cluster (`make cluster`), a small LLaMA, and docstrings of the standard library as
data. Run again, it runs the job anew; `make cluster-down` removes it all.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ |= {"DS_ACCELERATOR": "cpu", "TQDM_DISABLE": "1"}  # nothing is trained here: say nothing about it
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "quickstart")]

from data import docstrings  # noqa: E402 - the quickstart's, beside us

from finetune_api.v1alpha1.job_files import load_job  # noqa: E402
from tests.cluster.installation import QUICK, Installation, add_credentials, bucket, put_folder, put_rows  # noqa: E402
from tests.cluster.local import lifecycle  # noqa: E402
from tests.cluster.local.__main__ import dev_state  # noqa: E402
from tests.cluster.local.cluster import Cluster  # noqa: E402
from tests.support.models import make_llama  # noqa: E402

JOB = ROOT / "manifests" / "examples" / "lora-two-nodes.yaml"
NAMESPACE = "demo"
ROWS = 2000
POLL = 1.0
ENDINGS = {"Succeeded", "Failed"}


def main() -> int:
    """Exit code 0 and a last line `Succeeded`, or 1 and the story of what went wrong."""
    began = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "tests.cluster.local", "up"], cwd=ROOT).returncode
    cluster = lifecycle.running(dev_state())
    if code or cluster is None:
        return code or 1
    say("inputs", "a small LLaMA and docstrings of the standard library, into S3")
    put_inputs(cluster)
    say("helm", "upgrade --install --wait finetune-operator charts/finetune-operator")
    Installation(cluster).install(QUICK)
    name = load_job(JOB).metadata.name
    restrict(cluster)
    add_credentials(cluster, NAMESPACE)
    cluster.kubectl("delete", "ftj", name, f"--namespace={NAMESPACE}", "--ignore-not-found", "--timeout=120s")
    say("kubectl", f"apply --namespace {NAMESPACE} --filename {JOB.relative_to(ROOT)}")
    cluster.kubectl("apply", f"--namespace={NAMESPACE}", f"--filename={JOB}")
    phase = follow(cluster, name)
    describe(cluster, name)
    print(f"\n{time.monotonic() - began:.0f} s in all; `make cluster-down` removes everything")
    print(phase)
    return 0 if phase == "Succeeded" else 1


def say(what: str, line: str) -> None:
    print(f"{what:<9} {line}", flush=True)


def put_inputs(cluster: Cluster) -> None:
    """Model and data where the job looks for them."""
    texts = [text for text, _ in islice(docstrings(Path(sysconfig.get_path("stdlib"))), ROWS)]
    store = bucket(cluster)
    with tempfile.TemporaryDirectory() as folder:
        put_folder(store, make_llama(Path(folder, "llama"), texts), "models/small-llama")
    put_rows(store, ({"text": text} for text in texts), "data/docstrings.jsonl")


def restrict(cluster: Cluster) -> None:
    """The namespace, in which only pods of the restricted kind may run."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    cluster.kubectl("apply", "--filename=-", input=json.dumps(body))


def follow(cluster: Cluster, name: str) -> str:
    """Prints the columns of `kubectl get` whenever they change; returns the phase it ended in."""
    asked = ["get", "ftj", name, f"--namespace={NAMESPACE}"]
    shown = ""
    while True:
        header, line = cluster.kubectl(*asked).splitlines()
        columns = line.split()
        news = " ".join(columns[:-1])  # all but the age
        if news != shown:
            print(line if shown else f"\n{header}\n{line}", flush=True)
            shown = news
        phase = columns[1] if len(columns) > 2 else ""
        if phase in ENDINGS:
            return phase
        time.sleep(POLL)


def describe(cluster: Cluster, name: str) -> None:
    """Events and result of the job."""
    events = f"--field-selector=involvedObject.name={name}"
    columns = "--output=custom-columns=TYPE:.type,REASON:.reason,MESSAGE:.message"
    order = "--sort-by=.metadata.creationTimestamp"
    print("\n" + cluster.kubectl("get", "events", f"--namespace={NAMESPACE}", events, columns, order))
    status = cluster.get("ftj", name, f"--namespace={NAMESPACE}")["status"]
    for artifact in status.get("artifacts", []):
        say(artifact["kind"], artifact["uri"])
    if failure := status.get("failure"):
        say("failure", f"{failure['category']}: {failure['message']}\n{failure.get('hint', '')}")


if __name__ == "__main__":
    sys.exit(main())
