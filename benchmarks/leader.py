"""What a beat costs the leader: CPU per beat by size and state of the gang, with every node's poll held, as they are.

    python -m benchmarks.leader [--nodes 16 64 128] [--beats 20] [--rounds 3]

The leader and its server are real, on loopback; the nodes are clients in a process of their own, whose time does not
count. Prints a table and, as its last line, JSON; raw samples go to benchmarks/leader.json. CPU seconds are of the
leader's process; the machine's load moves them less than wall time. `before` in that file: the same script on 87ae106,
whose leader decided once for every beat.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from finetune_api.beats import AgentState, Beat, Directive, PartId, RankReport, RankState, StepMetrics
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.agent.leader import Leader
from finetune_trainer.agent.roster import Limits
from finetune_trainer.agent.server import AgentServer
from finetune_trainer.storage import FolderStore
from tests.local.harness import make_plan

TOKEN = "token"
STATES = ("running", "committing")
RESULTS = Path(__file__).with_suffix(".json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 16, 64, 128])
    parser.add_argument("--beats", type=int, default=20, help="of each node")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)  # commits fail here, on purpose
    samples = []
    for round_number in range(given.rounds):
        for nodes in given.nodes:
            for state in STATES:
                with tempfile.TemporaryDirectory() as folder:
                    taken = asyncio.run(measure(Path(folder), nodes, state, given.beats))
                samples.append({"nodes": nodes, "state": state, "round": round_number, **taken})
    table = summary(samples)
    print(f"{'nodes':>6} {'state':<11} {'CPU per beat':>14} {'range':>19} {'cores at 1 beat/s/node':>23}")
    for row in table:
        low, high = row["range_ms"]
        shown = f"{low:.2f} to {high:.2f} ms"
        print(f"{row['nodes']:>6} {row['state']:<11} {row['median_ms']:>11.2f} ms {shown:>19} {row['cores']:>23.3f}")
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]}
    before = json.loads(RESULTS.read_text()).get("before") if RESULTS.exists() else None
    kept = {"machine": machine, "summary": table, "samples": samples, "before": before}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps({"benchmark": "leader", "machine": machine, "summary": table}))


def summary(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return median and range of the rounds, by nodes and state."""
    table = []
    for nodes, state in sorted({(one["nodes"], one["state"]) for one in samples}):
        taken = [1000 * one["cpu"] / one["beats"] for one in samples if (one["nodes"], one["state"]) == (nodes, state)]
        median = statistics.median(taken)
        table.append(
            {
                "nodes": nodes,
                "state": state,
                "median_ms": round(median, 3),
                "range_ms": [round(min(taken), 3), round(max(taken), 3)],
                "cores": round(median * nodes / 1000, 4),
            }
        )
    return table


async def measure(folder: Path, nodes: int, state: str, beats: int) -> dict[str, Any]:
    """CPU seconds of this process while every node beats so often, and how many beats those were."""
    store = FolderStore(folder)
    plan: Plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, world=2).model_copy(
        update={"nodes": nodes, "max_steps": 100_000}
    )
    patient = Limits(silence=1e9, closed=1e9)
    leader = new_leader(plan, store, patient)
    server = AgentServer(TOKEN, lambda: True)
    port = await server.listen("127.0.0.1", 0)
    server.lead(leader)
    leading = asyncio.create_task(leader.run())
    ours, theirs = multiprocessing.Pipe()
    clients = multiprocessing.get_context("spawn").Process(target=run_clients, args=(port, nodes, state, beats, theirs))
    clients.start()
    try:
        await asyncio.to_thread(ours.recv)  # all have beaten once
        began = time.process_time()
        ours.send("go")
        sent = await asyncio.to_thread(ours.recv)
        return {"cpu": time.process_time() - began, "beats": sent}
    finally:
        clients.join()
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        await server.close()


def new_leader(plan: Plan, store: FolderStore, limits: Limits) -> Leader:
    return Leader(plan, store, store, "run/", "127.0.0.1:1", "i", limits)


def run_clients(port: int, nodes: int, state: str, beats: int, pipe: Any) -> None:
    """Run the clients of all nodes in one process."""
    asyncio.run(_all_nodes(port, nodes, state, beats, pipe))


async def _all_nodes(port: int, nodes: int, state: str, beats: int, pipe: Any) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        directives: dict[int, Directive] = {}

        async def post(beat: Beat) -> None:
            data = beat.model_dump_json(exclude_defaults=True)
            async with session.post(f"http://127.0.0.1:{port}/v1/beat", data=data) as answer:
                directives[beat.node] = Directive.model_validate_json(await answer.text())

        async def settle() -> None:
            await asyncio.gather(*(post(beat_of(node, state, directives.get(node), 0)) for node in range(nodes)))

        for _ in range(4):
            await settle()
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)

        async def live(node: int) -> None:
            for number in range(1, beats + 1):
                await post(beat_of(node, state, directives.get(node), number))

        await asyncio.gather(*(live(node) for node in range(nodes)))
    pipe.send(nodes * beats)


def beat_of(node: int, state: str, directive: Directive | None, number: int) -> Beat:
    """Return the beat of a node that trains, or of one that waits for the commit of its uploads (which never comes
    here).
    """
    generation = directive.generation if directive else 0
    parts = tuple(PartId(step=10 * step, generation=1, node_rank=node) for step in range(1, 11))
    runs = state == "running" and directive is not None and directive.action == "run"
    report = RankReport(rank=node, state=RankState.RUNNING, phase="train", step=number)
    steps = (StepMetrics(step=number, loss=1.0, learning_rate=1e-4, seconds=1.0),) if node == 0 and number else ()
    return Beat(
        node=node,
        incarnation=f"i{node}",
        host="127.0.0.1",
        generation=generation,
        state=AgentState.RUNNING if runs else AgentState.READY,
        ranks=(report,) if runs else (),
        steps=steps if runs else (),
        uploaded=parts if state == "committing" else (),
        have=directive.key if directive else "",
    )


if __name__ == "__main__":
    main()
