"""An earlier operator and this one take turns over the same jobs: upgrade, rollback, upgrade.

The earlier one refuses every field that it does not know, in a leader's answer and in what a pod left behind. As the
documentation says, a rollback keeps the trainer image: an earlier trainer does not see the checkpoints of a later one.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import File, checkpoint_of
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.policy.conditions import is_true
from tests.cluster.installation import CHART, EARLIER_QUICK, RELEASE, SYSTEM, Inputs, Installation, add_credentials
from tests.cluster.jobs import JobHandle, job
from tests.cluster.local import before, lifecycle
from tests.cluster.local.cluster import Cluster

pytestmark = pytest.mark.matrix

EVERY = 50  # steps between checkpoints
EARLIER = {"image": {"tag": "before"}, "trainerImage": {"tag": "before"}, **EARLIER_QUICK}
ROLLED_BACK = {"image": {"tag": "before"}, **EARLIER_QUICK}
UPGRADE = ("--reuse-values", "--set=image.tag=dev,trainerImage.tag=dev")


@pytest.fixture
def earlier_chart(installation: Installation) -> Iterator[Path]:
    """The earlier chart; our operator is there again afterwards. Without history it cannot be had."""
    sources = before.sources(lifecycle.CHECKOUT)
    if sources is None:
        reason = f"commit {before.COMMIT[:7]} is not in this checkout: `git fetch --unshallow`"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    yield sources / "charts" / "finetune-operator"
    installation.install()


def operator_images(cluster: Cluster) -> set[str]:
    items = cluster.get("pods", f"--namespace={SYSTEM}", "--selector=app.kubernetes.io/name=finetune-operator")["items"]
    return {pod["spec"]["containers"][0]["image"] for pod in items if "deletionTimestamp" not in pod["metadata"]}


def pods_of(handle: JobHandle) -> dict[int, str]:
    return {index: pod["metadata"]["uid"] for index, pod in handle.training_pods().items()}


def committed(handle: JobHandle) -> int:
    """The last step of which the job's storage holds a checkpoint."""
    folder = f"{handle.prefix}checkpoints/"
    names = [entry.key.removeprefix(folder).split("/") for entry in handle.store.list(folder)]
    found = [checkpoint_of(name) for name, *rest in names if rest == [File.MANIFEST]]
    return max((one[0] for one in found if one), default=0)


def wait_committed(handle: JobHandle, after: int) -> int:
    """The last committed step, once it is a later one: it is in storage, whether or not an operator can say so."""
    return handle.wait(
        f"a checkpoint after step {after}", lambda _: found if (found := committed(handle)) > after else 0
    )


def wait_settled(handle: JobHandle, phase: Phase, reason: str) -> FineTuneJobStatus:
    return handle.wait(
        f"{phase} ({reason})", lambda status: status if (status.phase, status.reason) == (phase, reason) else None
    )


def result_of(handle: JobHandle) -> dict[str, Any]:
    """What a user has of a job that has ended."""
    status = handle.object["status"]
    return {key: status.get(key) for key in ("phase", "completionTime", "artifacts", "attempt", "checkpoints")}


def test_an_earlier_operator_and_this_one_take_turns(
    cluster: Cluster, installation: Installation, earlier_chart: Path, namespace: str, inputs: Inputs
) -> None:
    add_credentials(cluster, namespace)
    installation.install(EARLIER, earlier_chart)
    assert operator_images(cluster) == {"localhost/finetune-operator:before"}

    def submit(name: str, steps: int, nodes: int) -> JobHandle:
        training = {"max_steps": steps, "global_batch_size": 4, "learning_rate": 0.001}
        small = {"training": training, "checkpoint": {"everySteps": EVERY}, "nodes": nodes}
        return job(cluster, namespace, name, model=inputs.llama, train=inputs.texts, split=None, **small).apply()

    finished, paused, running = submit("finished", 20, 1), submit("paused", 4000, 2), submit("running", 100_000, 2)
    finished.wait_phase(Phase.SUCCEEDED)
    result = result_of(finished)
    paused.wait_step(20)
    paused.patch(suspend=True)
    wait_settled(paused, Phase.SUSPENDED, "Suspended")
    saved = committed(paused)
    assert saved >= 20
    running.wait_step(EVERY)
    pods = pods_of(running)

    # upgraded, as `helm upgrade --reuse-values` does it: the new chart's values have no defaults
    installation.helm("upgrade", RELEASE, str(CHART), *UPGRADE, "--wait", "--timeout=150s")
    assert operator_images(cluster) == {"localhost/finetune-operator:dev"}
    running.wait_step((running.status.progress.step or 0) + 20 if running.status.progress else 20)
    assert pods_of(running) == pods
    assert result_of(finished) == result
    paused.patch(suspend=False)
    paused.wait_phase(Phase.RUNNING)
    saved = wait_committed(paused, saved)
    assert paused.status.recovery_totals
    assert paused.status.recovery_totals.lost_steps == 0
    resumed = pods_of(paused)
    assert len(resumed) == 2

    # rolled back, but for the trainer image
    step = committed(running)
    installation.install(ROLLED_BACK, earlier_chart)
    assert operator_images(cluster) == {"localhost/finetune-operator:before"}
    saved = wait_committed(paused, saved)
    wait_committed(running, step)
    assert (pods_of(running), pods_of(paused)) == (pods, resumed)
    assert result_of(finished) == result
    assert {running.status.phase, paused.status.phase} <= {Phase.RUNNING}
    paused.patch(suspend=True)
    wait_settled(paused, Phase.SUSPENDED, "Suspended")
    saved = committed(paused)
    paused.patch(suspend=False)
    paused.wait_phase(Phase.RUNNING)
    saved = wait_committed(paused, saved)
    resumed = pods_of(paused)

    # and forward again
    installation.install()
    status = paused.wait_step(saved)
    assert (pods_of(running), pods_of(paused)) == (pods, resumed)
    assert result_of(finished) == result
    assert not is_true(status, ConditionType.DEGRADED)
    running.patch(suspend=True)
    wait_settled(running, Phase.SUSPENDED, "Suspended")
    step = committed(running)
    running.patch(suspend=False)
    wait_committed(running, step)  # it goes on from there
    running.kubectl("delete", "ftj", running.name, "--wait=false")
    status = paused.wait_phase(Phase.SUCCEEDED)
    assert status.recovery_totals
    assert status.recovery_totals.lost_steps == 0
    assert status.artifacts
    assert status.artifacts[0].step == 4000
