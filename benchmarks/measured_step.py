"""One case of the memory benchmark: a step as a worker makes it, in forked processes, and its prediction."""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetune_trainer.prepare.plan.engine import deepspeed_config  # noqa: E402
from finetune_trainer.prepare.plan.memory import IMPORTS, Name, predict  # noqa: E402
from finetune_trainer.prepare.plan.rank_load import Load  # noqa: E402
from finetune_trainer.prepare.plan.shape import architecture_of  # noqa: E402
from tests.local.harness import free_port, make_plan  # noqa: E402

STEPS = 2
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
TASKS = {
    "llama": Task.CAUSAL_LM,
    "gpt2": Task.CAUSAL_LM,
    "bert": Task.CLASSIFICATION,
    "t5": Task.SEQ2SEQ,
}


def config_of(family: str, size: str) -> dict[str, Any]:
    """Return a model of 8 layers (T5: 4 and 4), 512 or 1,024 wide; at most 130 million parameters."""
    wide = {"s": 512, "m": 1024}[size]
    heads = wide // 64
    sizes = {"hidden_size": wide, "num_hidden_layers": 8, "num_attention_heads": heads}
    return {
        "llama": {
            **sizes,
            "num_key_value_heads": heads // 2,
            "intermediate_size": wide * 11 // 4 // 32 * 32,
            "max_position_embeddings": 2048,
        },
        "gpt2": {
            "n_embd": wide,
            "n_layer": 8,
            "n_head": heads,
            "n_positions": 1024,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "bert": {**sizes, "intermediate_size": 4 * wide, "max_position_embeddings": 512},
        "t5": {
            "d_model": wide,
            "d_ff": 4 * wide,
            "d_kv": 64,
            "num_layers": 4,
            "num_heads": heads,
            "decoder_start_token_id": 0,
        },
    }[family] | {"model_type": family, "vocab_size": 16000}


@dataclass(frozen=True)
class Case:
    """One measured step: rows of `length` tokens, `batch` of them on each rank at a time."""

    family: str
    size: str
    method: str
    stage: int
    batch: int
    length: int
    ranks: int = 1
    accumulation: int = 1
    checkpointing: bool = False
    bf16: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("checkpointing", "bf16") if getattr(self, name)]
        flags += [f"accumulation {self.accumulation}"] if self.accumulation > 1 else []
        shape = f"{self.batch}x{self.length}" + (f" on {self.ranks} ranks" if self.ranks > 1 else "")
        return " ".join([f"{self.family}-{self.size}", self.method, f"ZeRO-{self.stage}", shape, *flags])


@dataclass
class Marks:
    """High-water marks above the baseline, by phase, in bytes."""

    baseline: int
    phases: dict[str, int] = field(default_factory=dict)

    def phase(self, name: str) -> None:
        """Record the peak since the last mark as the phase `name`, and reset the mark."""
        self.phases[name] = max(self.phases.get(name, 0), memory("VmHWM") - self.baseline)
        reset()

    @property
    def peak(self) -> int:
        """Return the highest peak of all phases."""
        return max(self.phases.values())


def memory(name: str) -> int:
    """Return a figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def reset() -> None:
    """Reset the high-water mark to the current memory (man 5 proc, clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


class Rows:
    """Rows of random tokens, all of the full length. For padded batches only the first row of each micro-batch has it,
    and the others are an eighth shorter: without padding, shorter rows would make a smaller batch.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self.lengths = [self._length(index) for index in range(len(self))]

    def _length(self, index: int) -> int:
        full = TASKS[self._case.family] is Task.CAUSAL_LM or index % self._case.batch == 0
        return self._case.length if full else self._case.length * 7 // 8

    def __len__(self) -> int:
        return self._case.batch * self._case.ranks * self._case.accumulation * STEPS

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = np.random.default_rng(index).integers(5, 15000, self.lengths[index]).astype(np.int32)
        if self._case.family == "bert":
            return {"input_ids": ids, "label": index % 2}
        return {"input_ids": ids, "labels": ids.astype(np.int64)}


def plan_of(case: Case) -> Plan:
    """Return the plan of a case, with the DeepSpeed configuration that the planner writes."""
    training: dict[str, Any] = {"bf16": case.bf16}
    training |= {"activation_checkpointing": True} if case.checkpointing else {}
    return make_plan(
        TASKS[case.family],
        MethodType(case.method),
        world=case.ranks,
        stage=case.stage,
        micro_batch=case.batch,
        gradient_accumulation=case.accumulation,
        global_batch=case.batch * case.ranks * case.accumulation,
        max_steps=STEPS,
        deepspeed=deepspeed_config(case.stage, None, training),
        training=training,
        lora=LORA if case.method == "lora" else {},
    )


def model_of(case: Case, dtype: Any) -> Any:
    """Return a model with random weights, with its adapter."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    values = config_of(case.family, case.size)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.use_cache = False
    config.pad_token_id = 0
    autos: dict[Task, Any] = {
        Task.CAUSAL_LM: AutoModelForCausalLM,
        Task.CLASSIFICATION: AutoModelForSequenceClassification,
        Task.SEQ2SEQ: AutoModelForSeq2SeqLM,
    }
    types = {
        Task.CAUSAL_LM: TaskType.CAUSAL_LM,
        Task.CLASSIFICATION: TaskType.SEQ_CLS,
        Task.SEQ2SEQ: TaskType.SEQ_2_SEQ_LM,
    }
    task = TASKS[case.family]
    model = autos[task].from_config(config, dtype=dtype)
    if case.method == "lora":
        model = get_peft_model(model, LoraConfig(task_type=types[task], **LORA), autocast_adapter_dtype=case.stage != 3)
    return model


def run_rank(case: Case, rank: int, port: int, folder: Path) -> Marks:
    """Do what a worker does, to the end of the second step, without checkpoints."""
    import torch
    from transformers import set_seed

    from finetune_trainer.process.orders import WorkerOrder
    from finetune_trainer.worker.arguments import training_arguments, weight_dtype
    from finetune_trainer.worker.rendezvous import join
    from finetune_trainer.worker.sampling import VirtualDataset
    from finetune_trainer.worker.tasks import task_of
    from finetune_trainer.worker.trainer import FineTuneTrainer

    order = WorkerOrder(
        plan=plan_of(case),
        generation=1,
        rank=rank,
        local_rank=rank,
        node_rank=0,
        world_size=case.ranks,
        local_world_size=case.ranks,
        master_host="127.0.0.1",
        master_port=port,
        threads=1,
        model="",
        dataset="",
        checkpoints=str(folder / "checkpoints"),
        outputs=str(folder / "outputs"),
    )
    torch.set_num_threads(max(1, 2 // case.ranks))
    rows = Rows(case)
    marks = Marks(memory("VmRSS"))
    reset()
    join(order)
    args = training_arguments(order)
    set_seed(1)
    model = model_of(case, weight_dtype(args))
    marks.phase("build")
    task_of(order.plan).set_up(model, 0)
    batching = task_of(order.plan).batching(model, 0)
    data = VirtualDataset(rows, 1, STEPS, order.plan.layout.global_batch, dealt=batching.dealt)
    trainer: Any = FineTuneTrainer(
        order,
        None,  # type: ignore[arg-type]
        model,
        args,
        task=task_of(order.plan),
        head=task_of(order.plan).loss(model),
        data=data,
        train_dataset=data,
        data_collator=batching.collate,
    )
    trainer.save_checkpoint = lambda: None
    head, first = trainer.head, True

    def measured_head(*arguments: Any, **named: Any) -> Any:
        nonlocal first
        if first:
            first = False
            marks.phase("start")
            optimizer = trainer.model_wrapped.optimizer
            step = optimizer.step

            def measured_step(*one: Any, **two: Any) -> Any:
                marks.phase("backward")
                made = step(*one, **two)
                marks.phase("step")
                return made

            optimizer.step = measured_step
        made = head(*arguments, **named)
        marks.phase("forward")
        return made

    trainer.head = measured_head
    trainer.train()
    marks.phase("end")
    return marks


def measure(case: Case) -> dict[str, int]:
    """Run a process for each rank and return the marks of the one with the highest peak."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [folder / f"rank-{rank}" for rank in range(case.ranks)]
        children = [
            fork(path, lambda rank=rank: run_rank(case, rank, port, folder).phases) for rank, path in enumerate(ranks)
        ]
        found: list[dict[str, int]] = [result(pid, path) for pid, path in zip(children, ranks, strict=True)]
    return max(found, key=lambda one: max(one.values()))


def predicted(case: Case) -> tuple[int, str]:
    """Return the peak above the baseline that the plan predicts, and its moment. It runs in a process of its own, so
    that the baseline of the next case is unchanged.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "predicted"
        size, moment = result(fork(path, lambda: predict_case(case)), path)
    return size, moment


def predict_case(case: Case, *, with_margin: bool = False) -> tuple[int, str]:
    """Return the prediction of the memory model above the baseline."""
    width = 2 if case.bf16 else 4
    load = Load(
        architecture_of(config_of(case.family, case.size), TASKS[case.family], LORA, width),
        MethodType(case.method),
        case.stage,
        case.ranks,
        case.batch,
        case.length,
        case.accumulation,
        case.checkpointing,
    )
    made = predict(load)
    return made.bytes - (0 if with_margin else made.of(Name.MARGIN)) - IMPORTS, made.moment


def fork(path: Path, work: Callable[[], Any]) -> int:
    """Start a child that writes the result of `work` to a file, and its output beside it."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        log = os.open(f"{path}.log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        path.write_text(json.dumps(work()))
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def result(pid: int, path: Path) -> Any:
    """Return the result of a child."""
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"{path.name} failed\n{Path(f'{path}.log').read_text()[-3000:]}")
    return json.loads(path.read_text())


def imports() -> None:
    """Import all slow libraries before the first fork."""
    import deepspeed  # noqa: F401
    import peft  # noqa: F401

    import finetune_trainer.worker.rank_run  # noqa: F401
