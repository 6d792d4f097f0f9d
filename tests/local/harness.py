"""Runs workers as an agent would, without agent and leader, from one warm zygote for the whole test session."""

import asyncio
import os
import random
import socket
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from finetune_api.beats import RankState
from finetune_api.messages import DatasetFacts, MethodType, ModelFacts, ProblemType, SplitFacts, Task
from finetune_api.plan import Plan, PlannedEmbedding
from finetune_api.tasks import spec_of
from finetune_trainer.agent.workers import Workers
from finetune_trainer.prepare.observed.encoded import IGNORED
from finetune_trainer.process.orders import WorkerEvent, WorkerOrder

DEADLINE = 300
LABELS = ("animal", "colour", "number")
IDS = pa.list_(pa.int32())
T = TypeVar("T")


class Loop:
    """An asyncio loop in a thread of its own: the zygote dies with the thread that started it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class Run:
    """What came of one gang of workers: every event, and each rank's exit code."""

    events: tuple[WorkerEvent, ...]
    exit_codes: tuple[int | None, ...]
    logs: str

    def losses(self) -> dict[int, float]:
        return {event.step: event.values["loss"] for event in self.events if event.event == "step" and event.rank == 0}

    def grad_norms(self) -> dict[int, float]:
        return {e.step: e.values["grad_norm"] for e in self.events if e.event == "step" and e.rank == 0}

    def evaluations(self) -> list[dict[str, float]]:
        return [event.values for event in self.events if event.event == "eval" and event.rank == 0]


class Bench:
    """A warm zygote and what is needed to run ranks from it."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self._events: list[WorkerEvent] = []
        self._changed = asyncio.Event()
        self._folder = folder
        self.workers = self.loop.run(self._warm())

    async def _warm(self) -> Workers:
        workers = Workers(os.environ, self._folder / "logs", self._events.append, self._changed.set)
        await workers.warm_up()
        while not workers.warm:
            await self._change()
        return workers

    async def _change(self) -> None:
        await asyncio.wait_for(self._changed.wait(), DEADLINE)
        self._changed.clear()

    def run(
        self,
        plan: Plan,
        model: Path,
        dataset: Path,
        work: Path,
        *,
        resume: Path | None = None,
        generation: int = 1,
        adapter: Path | None = None,
    ) -> Run:
        """All ranks of the plan, to their end; every node has a folder of its own below `work`."""
        given = orders(plan, model, dataset, work, resume=resume, generation=generation, adapter=adapter)
        return self.loop.run(self._run(given))

    async def _run(self, to_run: Sequence[WorkerOrder]) -> Run:
        self._events.clear()
        await self.workers.start(to_run)
        while not self.workers.all_ended:
            await self._change()
            if any(report.state is RankState.FAILED for report in self.workers.reports):
                break
        reports = self.workers.reports
        await self.workers.kill()
        await asyncio.sleep(0)
        return Run(tuple(self._events), tuple(r.exit_code for r in reports), "\n".join(r.log_tail for r in reports))

    def close(self) -> None:
        self.loop.run(self.workers.close())
        self.loop.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def orders(
    plan: Plan,
    model: Path,
    dataset: Path,
    work: Path,
    *,
    resume: Path | None = None,
    generation: int = 1,
    adapter: Path | None = None,
) -> list[WorkerOrder]:
    """One order per rank, one rank per node, one thread each."""
    port = free_port()
    return [
        WorkerOrder(
            plan=plan,
            generation=generation,
            rank=rank,
            local_rank=0,
            node_rank=rank,
            world_size=plan.world_size,
            local_world_size=1,
            master_host="127.0.0.1",
            master_port=port,
            threads=1,
            model=str(model),
            dataset=str(dataset),
            checkpoints=str(work / f"node-{rank}"),
            outputs=str(work / "outputs"),
            adapter=str(adapter) if adapter else None,
            resume=str(resume).format(rank=rank) if resume else None,
        )
        for rank in range(plan.world_size)
    ]


def write_dataset(
    folder: Path,
    task: Task,
    *,
    rows: int = 96,
    seed: int = 7,
    problem: ProblemType = ProblemType.SINGLE_LABEL,
    end: int | None = None,
) -> Path:
    """A learnable data set, as prepare writes it: the first token tells the label, or predicts the rest of the row.

    Args:
        problem: what a classification predicts.
        end: token that ends every row and target, as encoder-decoders need it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ending = [] if end is None else [end]
    for name, count in (("train", rows), ("eval", rows // 4)):
        source = random.Random(f"{seed}-{name}")
        made = []
        for _ in range(count):
            label = source.randrange(len(LABELS))
            ids = [5 + label] + [20 + label * 30 + source.randrange(8) for _ in range(source.randrange(6, 30))]
            made.append((label, [*ids, *ending]))
        if task is Task.EMBEDDING:
            texts = [_compared(source) for _ in range(count)]
            made = [(0, [token for text in row for token in text]) for row in texts]
        columns = {"input_ids": pa.array([ids for _, ids in made], IDS)}
        if task is Task.CLASSIFICATION:
            columns["label"] = _labels([label for label, _ in made], problem)
        elif task is Task.SEQ2SEQ:
            targets = [[*ids[: 2 + len(ids) // 3], *ending] for _, ids in made]
            columns["labels"] = pa.array(targets, IDS)
        elif task is Task.CAUSAL_LM:
            columns["labels"] = columns["input_ids"]
        elif task is Task.EMBEDDING:
            columns["seq_lengths"] = pa.array([[len(text) for text in row] for row in texts], IDS)
        elif task is Task.TOKEN_CLASSIFICATION:
            columns["labels"] = pa.array([word_labels(ids) for _, ids in made], IDS)
        table = pa.table(columns)
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return folder


def _compared(source: random.Random) -> list[list[int]]:
    """Return an anchor, its positive and sometimes a negative: the second token tells which texts belong together."""
    key, other = source.sample(range(20), 2)

    def text(first: int, about: int) -> list[int]:
        return [first, about, *(source.randrange(60, 110) for _ in range(source.randrange(3, 9)))]

    return [text(5, 20 + key), text(6, 40 + key), *([text(6, 40 + other)] if source.random() < 0.3 else [])]


def word_labels(ids: Sequence[int]) -> list[int]:
    """Every second token begins a word, whose label it tells."""
    return [IGNORED if place % 2 else token % len(LABELS) for place, token in enumerate(ids)]


def _labels(labels: Sequence[int], problem: ProblemType) -> pa.Array:
    if problem is ProblemType.REGRESSION:
        return pa.array([float(label) for label in labels], pa.float32())
    if problem is ProblemType.MULTI_LABEL:
        return pa.array([sorted({label, 2}) for label in labels], IDS)
    return pa.array(labels, pa.int32())


def make_plan(
    task: Task,
    method: MethodType,
    *,
    world: int = 2,
    stage: int = 2,
    accumulation: int = 1,
    problem: ProblemType = ProblemType.SINGLE_LABEL,
    **changes: Any,
) -> Plan:
    """A plan of 12 steps with a global batch of 8, a checkpoint every 4."""
    classes = task is Task.CLASSIFICATION
    split = SplitFacts(rows=96, tokens=96 * 18, trained_tokens=96, longest=30)
    values: dict[str, Any] = {
        "task": task,
        "method": method,
        "model": ModelFacts(name="tiny", commit="0", prefix="", source="", model_type="", parameters=0, size_bytes=0),
        "dataset": DatasetFacts(
            sha256="0" * 64,
            train=split,
            eval=split,
            labels=LABELS if spec_of(task).named and problem is not ProblemType.REGRESSION else (),
            problem_type=problem if classes else None,
        ),
        "nodes": world,
        "processes_per_node": 1,
        "zero_stage": stage,
        "micro_batch": 8 // world // accumulation,
        "gradient_accumulation": accumulation,
        "global_batch": 8,
        "max_length": 64,
        "epochs": 1.0,
        "max_steps": 12,
        "learning_rate": 5e-3,
        "warmup_steps": 2,
        "lr_scheduler_type": "linear",
        "seed": 42,
        "eval_every_steps": 0,
        "checkpoint_every_steps": 4,
        "keep_last": 3,
        "best_metric": "eval_loss",
        "greater_is_better": False,
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
        if method is not MethodType.FULL
        else {},
        "deepspeed": {
            "zero_optimization": {
                "stage": stage,
                **({"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {}),
            },
            "train_micro_batch_size_per_gpu": "auto",
            "train_batch_size": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
            },
        },
    }
    if task is Task.EMBEDDING:
        values["embedding"] = PlannedEmbedding(texts=3, dimension=64)
    return Plan(**{**values, **changes})
