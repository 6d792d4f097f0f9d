"""Cost of a running FineTuneJob for the operator: requests to the API server, and CPU of the operator's process.

The controller, queue and poller are real. The API server is in memory, so that only its JSON takes time. The leaders
answer over loopback from a process of their own, each time with another step and every minute with another checkpoint.
All jobs run and nothing else happens. The figures cover the whole operator: polls and their consequences.

    python benchmarks/operator.py [--jobs 100 400] [--seconds 120] [--keep before]

operator.json has the samples under the name of `--keep` (default `after`) and keeps other names: `before` was measured
by this file at the commit named there, when every answer caused a reconcile.
"""

import argparse
import asyncio
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetune_operator.loop import progress  # noqa: E402
from finetune_operator.loop.controller import Controller  # noqa: E402
from finetune_operator.loop.news import News  # noqa: E402
from finetune_operator.loop.pace import WritePace  # noqa: E402
from finetune_operator.loop.queue import WorkQueue  # noqa: E402
from finetune_operator.objects.identity import JobKey  # noqa: E402
from tests.unit.operator_api import FakeApi  # noqa: E402
from tests.unit.operator_worlds import SETTINGS, running_objects  # noqa: E402
from tests.unit.operator_worlds import polled as leader_says  # noqa: E402

Object = dict[str, Any]
RECORD = ROOT / "benchmarks" / "operator.json"
LIBRARIES = ("aiohttp", "pydantic", "kubernetes")
SETTLE_SECONDS = 15  # three polls: every job is known ...
FIRST_WRITES = 8  # ... and the first status of every job is written, this many a second
CHECKPOINT_POLLS = 12  # a checkpoint a minute
SLICES = 4  # samples of CPU in one run


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        requests: by verb and resource.
        cpu_seconds: of the operator's process, in each part of the time.
        polls: answers of the leaders in each part.
    """

    jobs: int
    seconds: float
    requests: dict[str, int]
    cpu_seconds: list[float]
    polls: list[int]

    @property
    def requests_per_job_minute(self) -> float:
        return sum(self.requests.values()) / self.jobs / self.seconds * 60

    @property
    def writes_per_job_minute(self) -> float:
        return self.requests.get("PATCH finetunejobs/status", 0) / self.jobs / self.seconds * 60

    @property
    def cpu_ms_per_poll(self) -> float:
        return statistics.median(1000 * cpu / polls for cpu, polls in zip(self.cpu_seconds, self.polls, strict=True))

    @property
    def cores(self) -> float:
        return sum(self.cpu_seconds) / self.seconds


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--keep", default="after")
    options = parser.parse_args()
    with leaders() as (port, answered):
        samples = [asyncio.run(measure(jobs, options.seconds, port, answered)) for jobs in options.jobs]
    table = Table("when", "jobs", "requests / job-minute", "status writes / job-minute", "CPU ms / poll", "cores")
    result = {
        f"{one.jobs} jobs": {
            "requests_per_job_minute": round(one.requests_per_job_minute, 2),
            "writes_per_job_minute": round(one.writes_per_job_minute, 2),
            "cpu_ms_per_poll": round(one.cpu_ms_per_poll, 2),
            "cores": round(one.cores, 3),
        }
        for one in samples
    }
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    kept[options.keep] = {
        "result": result,
        "samples": [asdict(one) for one in samples],
        "command": " ".join(["python benchmarks/operator.py", *sys.argv[1:]]),
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }
    for name, record in kept.items():
        for jobs, figures in record["result"].items():
            table.add_row(name, jobs, *(f"{figure:.2f}" for figure in figures.values()))
    Console().print(table)
    RECORD.write_text(json.dumps(kept, indent=2) + "\n")
    print(json.dumps({name: one["result"] for name, one in kept.items()}))


async def measure(jobs: int, seconds: float, port: int, answered: Any) -> Sample:
    """Run once with this number of jobs."""
    progress.AGENT_PORT = port  # type: ignore[attr-defined] # every leader has an address of its own on loopback
    api = FakeApi()
    queue: WorkQueue[JobKey] = WorkQueue()
    pace: WritePace[JobKey] = WritePace(SETTINGS.progress_seconds)
    poller = progress.Poller(SETTINGS.token_key, SETTINGS.poll_seconds, queue.add, pace)
    controller = Controller(api, SETTINGS, queue, poller, pace, lambda: True)
    news = News(queue, poller)
    api.changed = lambda item: news.job("MODIFIED", item)  # as the watch reports it
    for number in range(jobs):
        for plural, item in running_objects(f"job-{number}", f"127.{number >> 14}.{number >> 7 & 127}.{number & 127}"):
            api.put(plural, item)
    work = [asyncio.create_task(controller.run()), asyncio.create_task(poller.run())]
    await asyncio.sleep(SETTLE_SECONDS + jobs / FIRST_WRITES)
    api.requests.clear()
    cpu, polls = [time.process_time()], [answered.value]
    began = time.monotonic()
    for part in range(1, SLICES + 1):
        await asyncio.sleep(began + seconds * part / SLICES - time.monotonic())
        cpu.append(time.process_time())
        polls.append(answered.value)
    passed, requests = time.monotonic() - began, dict(api.requests)
    for task in work:
        assert not task.done(), task
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    return Sample(
        jobs=jobs,
        seconds=round(passed, 2),
        requests=dict(sorted(requests.items())),
        cpu_seconds=[round(later - sooner, 3) for sooner, later in itertools.pairwise(cpu)],
        polls=[later - sooner for sooner, later in itertools.pairwise(polls)],
    )


@contextmanager
def leaders() -> Iterator[tuple[int, Any]]:
    """Start a process that answers for the leaders of all jobs; yield its port and its number of answers."""
    context = multiprocessing.get_context("fork")
    answered, port = context._Value("L", 0), context._Value("i", 0)
    serving = context.Process(target=serve, args=(port, answered), daemon=True)
    serving.start()
    while not port.value:
        time.sleep(0.01)
    try:
        yield port.value, answered
    finally:
        serving.terminate()
        serving.join()


def serve(port: Any, answered: Any) -> None:
    """Answer until terminated. A leader's step is the number of its answer, so every answer is new."""
    says = leader_says().progress
    assert says
    progress = says.model_dump(mode="json")
    steps: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.Response:
        answered.value += 1
        steps[request.host] += 1
        step = steps[request.host]
        saved = step // CHECKPOINT_POLLS
        checkpoints = [{**progress["checkpoints"][0], "step": saved}]
        return web.json_response(
            {**progress, "step": step, "max_steps": 10**9, "checkpoint_count": saved, "checkpoints": checkpoints}
        )

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/progress", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", 0).start()  # noqa: S104 # every leader has an address in 127.0.0.0/8
        port.value = runner.addresses[0][1]
        await asyncio.Event().wait()

    asyncio.run(run())


def commit() -> str:
    """Return the measured commit."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
