"""Times of a job on a real Kubernetes: its start, and its interruption by faults.

Two nodes on this machine (`make cluster`, started and stopped here), the operator from the chart, DeepSpeed ZeRO-2 over
gloo between two pods, LoRA on a tiny LLaMA. A real model would add the loading of weights and checkpoints. Every trial
is a new job, because the Job controller doubles its wait for every further loss of the same index. The leader times the
recoveries, from the failure to the next step; the other times come from the status (about 1 s of resolution).

    python benchmarks/cluster.py [--trials 3]          # needs root and Go
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetune_api.v1alpha1 import Phase  # noqa: E402
from tests.cluster.installation import QUICK, Inputs, Installation, add_credentials, make_inputs  # noqa: E402
from tests.cluster.jobs import JobHandle, job  # noqa: E402
from tests.cluster.local import lifecycle  # noqa: E402
from tests.cluster.local.cluster import Cluster, Settings  # noqa: E402
from tests.cluster.local.state import State, clusters  # noqa: E402
from tests.cluster.test_faults import KILL_A_WORKER, in_pod, recovered  # noqa: E402
from tests.tools import KUBE_VERSION  # noqa: E402

LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "kopf", "kubernetes")
NAMESPACE = "benchmark"
STEPS = 100_000

Samples = dict[str, list[float]]


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3)
    options = parser.parse_args()
    samples: Samples = defaultdict(list)
    state = State(clusters() / f"{lifecycle.TEST_PREFIX}benchmark-{os.getpid()}")
    with lifecycle.owned(state), tempfile.TemporaryDirectory() as folder:
        try:
            cluster = lifecycle.up(state, Settings(), print)
            began = time.monotonic()
            Installation(cluster).install(QUICK)
            samples["helm install --wait"].append(time.monotonic() - began)
            inputs = make_inputs(cluster, Path(folder))
            cluster.kubectl("create", "namespace", NAMESPACE)
            add_credentials(cluster, NAMESPACE)
            for trial in range(options.trials):
                measure(cluster, inputs, f"trial-{trial}", samples)
        finally:
            lifecycle.down(state)
    table = Table("what", "n", "min s", "median s", "max s")
    for name, values in samples.items():
        figures = (min(values), statistics.median(values), max(values))
        table.add_row(name, str(len(values)), *(f"{value:.1f}" for value in figures))
    Console().print(table)
    result = {name: round(statistics.median(values), 2) for name, values in samples.items()}
    record = {
        "medians": result,
        "samples": {name: [round(value, 2) for value in values] for name, values in samples.items()},
        "command": f"python benchmarks/cluster.py --trials {options.trials}",
        "versions": {"kubernetes": KUBE_VERSION, **{name: importlib.metadata.version(name) for name in LIBRARIES}},
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }
    (ROOT / "benchmarks" / "cluster.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(result))


def measure(cluster: Cluster, inputs: Inputs, name: str, samples: Samples) -> None:
    """Run one job, from apply to its deletion."""
    training = {"max_steps": STEPS, "global_batch_size": 4, "learning_rate": 0.0001}
    handle = job(
        cluster,
        NAMESPACE,
        name,
        model=inputs.llama,
        train=inputs.texts,
        split=None,
        training=training,
        checkpoint={"everySteps": 50},
    )
    clock = time.monotonic()
    handle.apply().wait_phase(Phase.STARTING, Phase.RUNNING)
    samples["apply to prepared"].append(time.monotonic() - clock)
    handle.wait_step(1)
    samples["apply to first step"].append(time.monotonic() - clock)
    handle.wait_step(100)
    in_pod(handle, handle.training_pods()[1]["metadata"]["name"], KILL_A_WORKER)
    samples["worker killed to next step"].append(seconds(handle, 1))
    handle.wait_step((handle.status.recoveries[0].resumed_step or 0) + 60)
    handle.kubectl("delete", "pod", handle.training_pods()[1]["metadata"]["name"], "--wait=false")
    samples["pod deleted to next step"].append(seconds(handle, 2))
    clock = time.monotonic()
    handle.patch(suspend=True)
    handle.wait("Suspended", lambda status: status.reason == "Suspended" or None)
    samples["suspended: saved and nodes free"].append(time.monotonic() - clock)
    saved = int((handle.status.last_checkpoint or "step-0").removeprefix("step-"))
    clock = time.monotonic()
    handle.patch(suspend=False)
    handle.wait_step(saved + 1)
    samples["resumed to next step"].append(time.monotonic() - clock)
    handle.kubectl("delete", "ftj", name, "--timeout=60s")
    handle.kubectl("wait", "--for=delete", "pods", f"--selector=finetune.dev/job-name={name}", "--timeout=90s")


def seconds(handle: JobHandle, count: int) -> float:
    """Return the duration of the recovery of this number, as the leader measured it."""
    return recovered(handle, count).recoveries[0].seconds or 0.0


if __name__ == "__main__":
    main()
