"""A FineTuneJob in a cluster, from outside: apply it, wait for what it says of itself, look at its pods."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from finetune_api.v1alpha1 import FineTuneJobStatus, Phase
from finetune_trainer.storage import ObjectStore, open_store
from tests.cluster.installation import BUCKET, CREDENTIALS
from tests.cluster.local.cluster import Cluster, ClusterError

Found = TypeVar("Found")
Object = dict[str, Any]

WAIT_SECONDS = 240.0
POLL = 0.3
SMALL = {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}}
STAGES = {"prepare": {"resources": SMALL}, "export": {"resources": SMALL}}


@dataclass(frozen=True)
class JobHandle:
    """One FineTuneJob."""

    cluster: Cluster
    namespace: str
    name: str
    spec: Object = field(default_factory=dict)

    # ------------------------------------------------------------ writing

    def apply(self) -> "JobHandle":
        """`kubectl apply`; raises ClusterError with the server's sentence when it is refused."""
        body = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": self.spec,
        }
        self.kubectl("apply", "--filename=-", input=json.dumps(body))
        return self

    def patch(self, **spec: Any) -> None:
        """Changes fields of the spec."""
        self.kubectl("patch", "ftj", self.name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def kubectl(self, *arguments: str, **more: Any) -> str:
        """kubectl in the job's namespace."""
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments, **more)

    # ------------------------------------------------------------ reading

    @property
    def object(self) -> Object:
        return self.cluster.get("ftj", self.name, f"--namespace={self.namespace}")

    @property
    def status(self) -> FineTuneJobStatus:
        return FineTuneJobStatus.model_validate(self.object.get("status") or {})

    def children(self, kind: str, selector: str = "") -> list[Object]:
        """Objects that the operator made for this job."""
        wanted = f"finetune.dev/job-name={self.name}{',' + selector if selector else ''}"
        items: list[Object] = self.cluster.get(kind, f"--namespace={self.namespace}", f"--selector={wanted}")["items"]
        return items

    def training_pods(self) -> dict[int, Object]:
        """The newest pod of each index that is not being deleted."""
        found: dict[int, Object] = {}
        for pod in sorted(self.children("pods", "finetune.dev/stage=train"), key=_created):
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] in {"Pending", "Running"}:
                found[int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])] = pod
        return found

    def events(self) -> list[Object]:
        """Events on the job itself, oldest first."""
        told = self.cluster.get(
            "events", f"--namespace={self.namespace}", f"--field-selector=involvedObject.name={self.name}"
        )["items"]
        return sorted(told, key=lambda event: (event.get("lastTimestamp") or "", event["metadata"]["resourceVersion"]))

    @property
    def store(self) -> ObjectStore:
        """The job's storage."""
        return open_store(self.spec["storage"]["uri"], self.cluster.s3.environ)

    @property
    def prefix(self) -> str:
        """Key prefix of the run."""
        return f"jobs/{self.namespace}/{self.name}/{self.object['metadata']['uid']}/"

    # ------------------------------------------------------------ waiting

    def wait(
        self, about: str, until: Callable[[FineTuneJobStatus], Found | None], seconds: float = WAIT_SECONDS
    ) -> Found:
        """Looks at the status until `until` returns something.

        Raises:
            AssertionError: it does not come, or the job has failed meanwhile; with its story.
        """
        deadline = time.monotonic() + seconds
        while True:
            status = self.status
            if found := until(status):
                return found
            if status.phase is Phase.FAILED:
                raise AssertionError(f"waited for {about}, but the job failed:\n{self.story()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s for {about}:\n{self.story()}")
            time.sleep(POLL)

    def wait_phase(self, *phases: Phase, seconds: float = WAIT_SECONDS) -> FineTuneJobStatus:
        """The status once its phase is one of these."""
        names = " or ".join(phases)
        return self.wait(names, lambda status: status if status.phase in phases else None, seconds)

    def wait_step(self, step: int, seconds: float = WAIT_SECONDS) -> FineTuneJobStatus:
        """The status once so many steps are done."""
        return self.wait(
            f"step {step}",
            lambda status: status if status.progress and (status.progress.step or 0) >= step else None,
            seconds,
        )

    def wait_failed(self, seconds: float = WAIT_SECONDS) -> FineTuneJobStatus:
        """The status once the job has failed."""
        return self.wait("Failed", lambda status: status if status.phase is Phase.FAILED else None, seconds)

    def wait_pod(self, index: int, seconds: float = WAIT_SECONDS) -> Object:
        """The pod of an index, once it runs."""

        def running(_: FineTuneJobStatus) -> Object | None:
            pod = self.training_pods().get(index)
            return pod if pod and pod["status"]["phase"] == "Running" else None

        return self.wait(f"pod {index}", running, seconds)

    def story(self) -> str:
        """All that helps to understand what happened."""
        told = [self.kubectl("describe", "ftj", self.name, check=False)[-6000:]]
        told.append(self.kubectl("get", "jobs,pods", "--output=wide", check=False))
        for pod in self.children("pods"):
            name = pod["metadata"]["name"]
            told.append(f"--- {name}\n" + self.kubectl("logs", name, "--tail=25", check=False))
        return "\n".join(told)


def job(
    cluster: Cluster, namespace: str, name: str, *, model: str, train: str, split: float | None = 0.1, **spec: Any
) -> JobHandle:
    """A small job of two nodes; `spec` adds to and replaces what stands here."""
    dataset: Object = {"train": train}
    if split:
        dataset["eval"] = {"split": split}
    made = {
        "model": {"uri": model},
        "dataset": dataset,
        "method": {"type": "lora", "lora": {"r": 4}},
        "training": {"max_steps": 60, "global_batch_size": 4, "learning_rate": 0.001},
        "checkpoint": {"everySteps": 20},
        "nodes": 2,
        "resourcesPerNode": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
        "storage": {
            "uri": f"s3://{BUCKET}/runs",
            "endpoint": cluster.s3_endpoint_inside,
            "region": "us-east-1",
            "credentialsSecretRef": {"name": CREDENTIALS},
        },
        **STAGES,
        **spec,
    }
    return JobHandle(cluster, namespace, name, made)


def refused(handle: JobHandle) -> str:
    """The sentence of an apply that is refused."""
    try:
        handle.apply()
    except ClusterError as error:
        return str(error)
    raise AssertionError(f"{handle.name} was accepted")


def _created(pod: Object) -> str:
    return str(pod["metadata"]["creationTimestamp"])
