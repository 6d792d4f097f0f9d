"""How the ranks of a generation find each other: static, on a port that no earlier generation used."""

import datetime
import os
import socket
import time

import deepspeed
import torch

from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.compat import use_plain_gloo

TIMEOUT = datetime.timedelta(minutes=30)  # above every hang limit of the agent, so that the agent decides


def join(order: WorkerOrder) -> None:
    """Joins the process group of the order's generation: NCCL with a GPU, gloo without.

    Must run before TrainingArguments and before the model is loaded: otherwise transformers on CPU sees a world of one.
    """
    os.environ.update(
        RANK=str(order.rank),
        LOCAL_RANK=str(order.local_rank),
        WORLD_SIZE=str(order.world_size),
        LOCAL_WORLD_SIZE=str(order.local_world_size),
        MASTER_ADDR=order.master_host,
        MASTER_PORT=str(order.master_port),
    )
    if order.rank:
        _wait_for_port(order.master_host, order.master_port)
    if torch.cuda.is_available():
        torch.cuda.set_device(order.local_rank)
        deepspeed.init_distributed("nccl", dist_init_required=True, timeout=TIMEOUT)
    else:
        use_plain_gloo()
        deepspeed.init_distributed("gloo", dist_init_required=True, timeout=TIMEOUT)


def _wait_for_port(host: str, port: int) -> None:
    """TCPStore's own retries back off to seconds; polling first brings a recovery from 9 s to 0.3 s."""
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise ConnectionError(f"rank 0 did not open {host}:{port} within {TIMEOUT}")
