"""How long a node's part of a checkpoint takes to a real S3 server (versitygw, on this machine), and what two nodes
store.

`before`: one file after the other, each with a transfer manager of its own, and on every node the states that all nodes
have in common. `after`: `CheckpointStore.upload`. Both take the same files in turn, `ROUNDS` times, after one round
that is not counted. `LATENCIES`: what a proxy in front of the server adds to every answer, as a network and a busy
store do; 0 is the bare loopback, where the server and the client part two cores.

    python benchmarks/uploads.py
"""

import json
import os
import platform
import select
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import create_transfer_manager

from finetune_api.beats import PartId
from finetune_trainer.checkpoints.marker import Marker, marker_name
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.storage import S3Store, open_store, regular_files
from tests.support.s3 import S3Server, start_s3
from tests.tools import tool

ROUNDS = 4
LATENCIES = (0.0, 0.02)  # seconds
MIB = 1 << 20
SHARES = {  # MiB by file name
    "adapter": {"adapter_model.safetensors": 8, "global_step9/mp_rank_00_model_states.pt": 8,
                **{f"global_step9/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt": 6 for rank in range(8)}},
    "full": {"model.safetensors": 64, "global_step9/mp_rank_00_model_states.pt": 64,
             **{f"global_step9/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt": 8 for rank in range(8)}},
}  # fmt: skip
BUCKET = "uploads"
RECORD = Path(__file__).with_suffix(".json")


def make_part(folder: Path, sizes: dict[str, int], saved: PartId) -> None:
    """A part of one node, as eight ranks leave it."""
    block = os.urandom(MIB)
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for _ in range(size):
                file.write(block)
    for rank in range(8):
        marker = Marker(step=saved.step, generation=saved.generation, rank=rank, samples=1)
        (folder / marker_name(rank)).write_text(marker.to_json())
        (folder / f"rng_state_{rank}.pth").write_bytes(block[:15000])


def before(store: S3Store, prefix: str, folder: Path) -> None:
    """As `CheckpointStore.upload` was: a file at a time, and a transfer manager for each."""
    shared = store._transfers
    for path in regular_files(folder):
        with create_transfer_manager(store._client, shared.config) as store._transfers:  # type: ignore[arg-type]
            store.put_file(prefix + path.relative_to(folder).as_posix(), path)
    store._transfers = shared


@contextmanager
def delayed(server: S3Server, seconds: float) -> Iterator[S3Server]:
    """The server behind a proxy that holds every answer back for so long."""
    if not seconds:
        yield server
        return
    host, port = server.endpoint.removeprefix("http://").split(":")
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)

    def carry(client: socket.socket) -> None:
        upstream = socket.create_connection((host, int(port)))
        ends = {client: upstream, upstream: client}
        with client, upstream:
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(MIB)
                    if not data:
                        return
                    if end is upstream:
                        time.sleep(seconds)
                    ends[end].sendall(data)

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=carry, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield replace(server, endpoint=f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        listening.close()


def sampled(server: S3Server, part: str, latency: float, work: Path) -> list[dict[str, Any]]:
    """Both ways in turn."""
    saved = PartId(step=9, generation=1, node_rank=0)
    folder = work / part
    make_part(folder, SHARES[part], saved)
    samples = []
    with delayed(server, latency) as reached:
        store = open_store(f"s3://{BUCKET}/{part}", reached.environ)
        assert isinstance(store, S3Store)
        for number in range(ROUNDS + 1):
            row: dict[str, Any] = {"part": part, "latency_s": latency, "round": number}
            for way in ("before", "after") if number % 2 else ("after", "before"):
                run = f"{way}-{latency}-{number}/"
                began = time.perf_counter()
                if way == "before":
                    before(store, f"{run}checkpoints/step/node-0/", folder)
                else:
                    CheckpointStore(store, run).upload(saved, folder)
                row[f"{way}_s"] = time.perf_counter() - began
                store.delete([entry.key for entry in store.list(run)])
            samples += [row] if number else []
    shutil.rmtree(folder)
    return samples


def stored(part: str) -> dict[str, int]:
    """MiB that a checkpoint of two nodes takes in storage, both ways."""
    sizes = SHARES[part]
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))  # node 0 alone has them
    common = sum(size for name, size in sizes.items() if "/mp_rank_" in name)
    other = sum(sizes.values()) - weights - common
    return {"before": weights + 2 * (common + other), "after": weights + common + 2 * other}


def main() -> None:
    """Prints a table and, on the last line, the record as JSON; writes it beside this file with its samples."""
    samples = []
    with tempfile.TemporaryDirectory() as folder, start_s3(Path(folder) / "s3") as server:
        server.make_bucket(BUCKET)
        for part in SHARES:
            for latency in LATENCIES:
                samples += sampled(server, part, latency, Path(folder))
    cases = []
    print(f"{'part':10}{'MiB':>6}{'latency':>10}{'before':>10}{'after':>10}{'ratio':>8}{'range':>14}")
    for part in SHARES:
        for latency in LATENCIES:
            own = [one for one in samples if (one["part"], one["latency_s"]) == (part, latency)]
            ratios = sorted(one["before_s"] / one["after_s"] for one in own)
            case = {
                "part": part,
                "mib": sum(SHARES[part].values()),
                "latency_s": latency,
                "before_s": statistics.median(one["before_s"] for one in own),
                "after_s": statistics.median(one["after_s"] for one in own),
                "ratio": statistics.median(ratios),
                "ratios": [ratios[0], ratios[-1]],
                "two_nodes_mib": stored(part),
            }
            cases.append(case)
            print(
                f"{part:10}{case['mib']:6}{latency * 1000:8.0f}ms{case['before_s']:9.2f}s{case['after_s']:9.2f}s"
                f"{case['ratio']:7.2f}x{ratios[0]:7.2f} - {ratios[-1]:.2f}"
            )
    for part in SHARES:
        print(f"{part}: two nodes store {stored(part)['after']} MiB, {stored(part)['before']} before")
    version = subprocess.run([tool("versitygw"), "--version"], capture_output=True, text=True, check=False).stdout
    machine = {"python": platform.python_version(), "boto3": boto3.__version__, "server": version.split("\n")[0],
               "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}  # fmt: skip
    record = {"command": "python benchmarks/uploads.py", "rounds": ROUNDS, "machine": machine, "cases": cases}
    RECORD.write_text(json.dumps({**record, "samples": samples}, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
