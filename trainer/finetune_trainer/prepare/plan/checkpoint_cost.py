"""How often a checkpoint is saved, how large it is, and how long a pod needs to save one. Pure.

The interval that loses least time in all is sqrt(2 * time of a save * mean time between failures): Young 1974 (A first
order approximation to the optimum checkpoint interval), refined by Daly 2006. Failures: the Llama 3 paper (arXiv
2407.21783, section 3.3.4) counts 419 unexpected interruptions in 54 days on 16,384 GPUs.
"""

import math

from finetune_api.messages import DatasetFacts, ModelFacts

MASTER = 4  # bytes of the float32 copy of a weight
ADAM = 8  # bytes of Adam's two moments
NODE_MTBF = 54 * 86400 * (16384 / 8) / 419  # seconds: a node of 8 GPUs fails every 264 days
LOCAL_DISK = 1e9  # bytes a second that a node writes
UPLOAD_BANDWIDTH = 50_000_000  # bytes a second that any node's way to its object storage should reach
AGREEMENT_SECONDS = 30  # to finish the step at hand, write to the local disk, commit, upload logs
LEAST_GRACE, MOST_GRACE = 60, 1800  # seconds
LOCAL_CHECKPOINTS = 4  # two are kept, and the best until it is uploaded; one is being written
SPARE = 1 << 30  # bytes of scratch: logs, caches
ROW_BYTES = 24  # offsets and validity of a row's columns
TOKEN_BYTES = 8  # input_ids and labels


def checkpoint_bytes(trained: int, weight_bytes: int, nodes: int, zero_stage: int, state_bytes: float = ADAM) -> int:
    """Return bytes of the largest node's part, node 0's.

    It holds the trained weights in Hugging Face's and in DeepSpeed's layout, and the optimizer states, which ZeRO
    shards over the nodes.

    Args:
        state_bytes: of the optimizer per trained parameter, without the float32 copy of the weights.
    """
    return 2 * trained * weight_bytes + int(trained * (MASTER + state_bytes) // (nodes if zero_stage else 1))


def stop_uploads(dataset: DatasetFacts) -> int:
    """Return how many checkpoints a stop may have to upload: the newest, and the best by an evaluation."""
    return 1 if dataset.eval is None else 2


def grace_seconds(checkpoint: int, uploads: int) -> int:
    """Return the time that a pod needs to save and upload checkpoints of this size, within bounds."""
    upload = math.ceil(uploads * checkpoint / UPLOAD_BANDWIDTH)
    return min(MOST_GRACE, max(LEAST_GRACE, AGREEMENT_SECONDS + upload))


def save_seconds(checkpoint: int) -> float:
    """Return how long training stops for a save of this size."""
    return max(1.0, checkpoint / LOCAL_DISK)


def best_interval(checkpoint: int, nodes: int) -> float:
    """Return the seconds between two saves with which failures and saves together cost least."""
    return math.sqrt(2 * save_seconds(checkpoint) * NODE_MTBF / nodes)


def scratch_bytes(model: ModelFacts, dataset: DatasetFacts, checkpoint: int) -> int:
    """Return node-local space for model, data and checkpoints."""
    return model.size_bytes + dataset_bytes(dataset) + LOCAL_CHECKPOINTS * checkpoint + SPARE


def dataset_bytes(facts: DatasetFacts) -> int:
    """Return bytes of the prepared data set's files."""
    splits = [facts.train, *([facts.eval] if facts.eval else [])]
    return sum(split.tokens * TOKEN_BYTES + split.rows * ROW_BYTES for split in splits)
