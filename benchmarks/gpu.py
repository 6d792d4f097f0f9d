"""Training on one GPU: tokens a second, TFLOP/s and MFU of the worker's trainer, TRL's SFTTrainer and a bare DeepSpeed
loop.

Llama 3.1 8B, 3.2 3B and 1B shapes with random weights, one row of 4,096 tokens a step, every token trained, bfloat16,
no activation checkpointing: LoRA (rank 16, all linear layers), full fine-tuning, QLoRA. Each case is a process of its
own, forked before CUDA is initialised, with a deadline; it prints one JSON line. This is part of the GPU check
(docs/development/gpu.md). `--tiny` runs the same code on a CPU with a tiny shape, as a test of the code.

Operations of a token (`prepare.plan.speed.flops_per_token`; PaLM paper, arXiv 2204.02311, appendix B): 6 for each
weight of a matrix in full fine-tuning; 4, and 6 for each of the adapter's, under LoRA, whose frozen weights need no
gradient; 12 x layers x width x tokens for attention's scores, causal ones not counted as half. MFU = operations a
second / dense peak of the GPU in 16 bits (`prepare/plan/gpus.py`).

    python benchmarks/gpu.py [--only TEXT] [--tiny]
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NO_GPU = 2  # exit code
if __name__ == "__main__" and "--tiny" not in sys.argv and not Path("/dev/nvidiactl").exists():
    # a query of torch would initialise CUDA, and forked processes could not use it
    print("no NVIDIA GPU on this machine: nothing was measured (--tiny runs the code on a CPU)", file=sys.stderr)
    sys.exit(NO_GPU)

import numpy as np  # noqa: E402
from gpu_memory import MODELS, llama  # noqa: E402
from measured_step import LORA, fork, imports, result  # noqa: E402

from finetune_api.messages import MethodType, Task  # noqa: E402
from finetune_api.plan import Plan  # noqa: E402
from finetune_trainer.prepare.plan import gpus  # noqa: E402
from finetune_trainer.prepare.plan.engine import deepspeed_config  # noqa: E402
from finetune_trainer.prepare.plan.rank_load import Load  # noqa: E402
from finetune_trainer.prepare.plan.shape import architecture_of  # noqa: E402
from finetune_trainer.prepare.plan.speed import flops_per_token  # noqa: E402
from finetune_trainer.process.orders import WorkerOrder  # noqa: E402
from tests.local.harness import make_plan, orders  # noqa: E402

STEPS, UNTIMED = 20, 5
DEADLINE = 75  # seconds a case
PROFILED = 10  # steps, where the time goes
TOP = 25  # kernels that take most of it
TINY = llama(64, 2, 4, 2, 176, 512, tied=False)
REFERENCE = {
    "case": "published: NVIDIA NeMo AutoModel, Llama 3 8B LoRA, 4,096 tokens, H100",
    "tokens_per_second": 12473,
    "measured_by_us": False,
}


@dataclass(frozen=True)
class Case:
    """One kind of step; `head` as in `Plan.loss_head`.

    Attributes:
        trainer: ours, trl, or bare: DeepSpeed's engine in a hand-written loop, with our batches and loss.
        profiled: whether torch's profiler watches ten steps, which slows them.
    """

    model: str
    method: MethodType
    trainer: str = "ours"
    head: str = "labelled"
    length: int = 4096
    profiled: bool = False

    def __str__(self) -> str:
        return f"{self.model} {self.method} {self.trainer} {self.head}{' profiled' if self.profiled else ''}"


GRID = (
    Case("8B", MethodType.LORA),
    Case("8B", MethodType.LORA, "trl"),
    Case("8B", MethodType.LORA, "bare"),
    Case("8B", MethodType.LORA, head="chunked"),
    Case("8B", MethodType.LORA, head="liger"),
    Case("1B", MethodType.FULL),
    Case("3B", MethodType.FULL),
    Case("8B", MethodType.QLORA),
    Case("8B", MethodType.LORA, profiled=True),
)
SMALL = (
    Case("tiny", MethodType.LORA, length=64),
    Case("tiny", MethodType.LORA, "trl", length=64),
    Case("tiny", MethodType.LORA, "bare", length=64),
    Case("tiny", MethodType.LORA, head="chunked", length=64),
    Case("tiny", MethodType.FULL, length=64),
    Case("tiny", MethodType.QLORA, length=64),
    Case("tiny", MethodType.LORA, length=64, profiled=True),
)


class Rows:
    """Random tokens, all rows of the full length, every token trained."""

    def __init__(self, length: int, words: int) -> None:
        self._length = length
        self._words = words
        self.lengths = [length] * STEPS

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = np.random.default_rng(index).integers(5, self._words - 5, self._length).astype(np.int32)
        return {"input_ids": ids, "labels": ids}


def main() -> int:
    """Measure; print a JSON line for each case, and write all of them beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is written")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape on the CPU; nothing is written")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}
    chosen = [case for case in (SMALL if options.tiny else GRID) if options.only in str(case)]
    imports()
    if any(case.trainer == "trl" for case in chosen):
        from trl import SFTConfig, SFTTrainer  # noqa: F401
    lines = []
    for case in chosen:
        lines.append(measured(case))
        print(json.dumps(lines[-1]), flush=True)
    if not options.tiny:
        lines.append(REFERENCE)
    if not options.tiny and not options.only:
        libraries = ("torch", "transformers", "trl", "deepspeed", "peft", "bitsandbytes", "liger-kernel")
        versions = {name: importlib.metadata.version(name) for name in libraries}
        record = {"cases": lines, "versions": versions, "command": "python benchmarks/gpu.py"}
        Path(__file__).with_name("gpu.json").write_text(json.dumps(record, indent=2) + "\n")
    for line in lines:
        figures = (
            f"{line.get('tokens_per_second', 0):>10.0f} tokens/s{line.get('teraflops_per_second', 0):>8.1f} TFLOP/s"
        )
        print(f"{line['case'][:70]:<72}{line.get('error') or figures}")
    print(json.dumps({line["case"]: line.get("tokens_per_second") for line in lines}))
    return int(any("error" in line for line in lines))


def measured(case: Case) -> dict[str, Any]:
    """Run one case in a process of its own; return its figures, or the reason why it has none."""
    shape = TINY if case.model == "tiny" else MODELS[case.model]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "result"
        pid = fork(path, lambda: trained(case, shape, Path(name)))
        try:
            found = result(pid, path) if ended(pid) else {"error": f"not done within {DEADLINE} s"}
        except SystemExit as error:  # a case that fails, such as for lack of memory, does not end the others
            found = {"error": str(error).splitlines()[-1][:300]}
    return {"case": str(case), **asdict(case), **found}


def ended(pid: int) -> bool:
    """Wait for a child until the deadline, without reaping it."""
    until = time.monotonic() + DEADLINE
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.05)
    return True


def trained(case: Case, shape: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train, in the child, and return the figures."""
    import torch

    torch.set_num_threads(1 if case.model == "tiny" else 4)
    times: list[float] = []
    train = {"ours": ours, "trl": trl, "bare": bare}[case.trainer]
    profile: dict[str, Any] = {}
    with profiler(profile) if case.profiled else contextlib.nullcontext() as watched:
        train(case, shape, folder, Clock(times, watched))
    steps = [later - before for before, later in itertools.pairwise(times[UNTIMED - 1 :])]
    seconds = statistics.median(steps)
    operations = operations_of(case, shape)
    rate = case.length / seconds
    gpu = gpus.find_gpu(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return {
        "tokens_per_second": round(rate, 1),
        "step_seconds": round(seconds, 4),
        "step_seconds_samples": [round(one, 4) for one in steps],
        "teraflops_per_second": round(rate * operations / 1e12, 4),
        "operations_per_token": operations,
        "mfu": round(rate * operations / (gpu.teraflops * 1e12), 4) if gpu else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
        **profile,
    }


def operations_of(case: Case, shape: dict[str, Any]) -> float:
    """Return the operations of a token, counted for the model on the meta device."""
    load = Load(architecture_of(shape, Task.CAUSAL_LM, LORA, 2), case.method, 0, 1, 1, case.length)
    return flops_per_token(load, case.length, 1.0)


class Clock:
    """A record of the time at which each step ends on the GPU, which also drives a profiler."""

    def __init__(self, times: list[float], watched: Any) -> None:
        self._times = times
        self._watched = watched

    def tick(self) -> None:
        """Record the end of a step."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())
        if self._watched is not None:
            self._watched.step()

    def callback(self) -> Any:
        """Return a callback of transformers that does the same."""
        from transformers import TrainerCallback

        clock = self

        class Ticking(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.tick()

        return Ticking()


@contextlib.contextmanager
def profiler(found: dict[str, Any]) -> Iterator[Any]:
    """Return a profiler of ten steps after the untimed ones, which writes the slowest kernels to `found`."""
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    plan = schedule(skip_first=UNTIMED - 1, wait=0, warmup=1, active=PROFILED, repeat=1)
    with profile(activities=activities, schedule=plan) as watched:
        yield watched
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kinds = torch.autograd.DeviceType
    kernels = [one for one in watched.key_averages() if not on_gpu or one.device_type == kinds.CUDA]
    kernels = [one for one in kernels if not one.key.startswith("ProfilerStep")]
    total = sum(getattr(one, own) for one in kernels) or 1
    kernels.sort(key=lambda one: getattr(one, own), reverse=True)
    found["kernel_ms_per_step"] = round(total / 1000 / PROFILED, 2)
    found["top"] = [
        f"{getattr(one, own) / total:6.1%} {getattr(one, own) / 1000 / PROFILED:9.3f} ms {one.count // PROFILED:6d} x "
        f"{one.key[:100]}"
        for one in kernels[:TOP]
    ]


def model_of(case: Case, shape: dict[str, Any]) -> Any:
    """Return a model with random weights in bfloat16; for QLoRA with its linear layers in 4 bits."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = dict(shape)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.use_cache, config.pad_token_id = False, 0
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if case.method is MethodType.QLORA:
        in_four_bits(model, device)
    return model


def in_four_bits(model: Any, device: str) -> None:
    """Quantize the layers as `from_pretrained` does while it loads; these weights come from no file."""
    from finetune_trainer.worker.compat import uncover_bitsandbytes

    uncover_bitsandbytes()
    import bitsandbytes
    import torch

    for layer in model.model.layers:
        for name, linear in list(layer.named_modules()):
            if isinstance(linear, torch.nn.Linear):
                small = bitsandbytes.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
                )
                weight = linear.weight.data.to("cpu")
                small.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
                parent, _, own = name.rpartition(".")
                setattr(layer.get_submodule(parent), own, small.to(device))
    model.is_loaded_in_4bit = True


def plan_of(case: Case) -> Plan:
    """Return a plan of one rank: without ZeRO's copies for adapters, ZeRO-2 for whole models."""
    stage = 2 if case.method is MethodType.FULL else 0
    training = {"bf16": True}
    return make_plan(
        Task.CAUSAL_LM,
        case.method,
        world=1,
        stage=stage,
        micro_batch=1,
        gradient_accumulation=1,
        global_batch=1,
        max_steps=STEPS,
        max_length=case.length,
        loss_head=case.head,
        deepspeed=deepspeed_config(stage, None, training),
        training=training,
        lora={} if case.method is MethodType.FULL else LORA,
    )


@dataclass(frozen=True)
class Parts:
    """The parts that both of our loops train."""

    order: WorkerOrder
    model: Any
    data: Any
    collate: Any


def parts_of(case: Case, shape: dict[str, Any], folder: Path) -> Parts:
    """Join the process group and return the model with its adapter, and the rows in their order."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import set_seed

    from finetune_trainer.worker.rendezvous import join
    from finetune_trainer.worker.sampling import VirtualDataset
    from finetune_trainer.worker.tasks import task_of

    order = orders(plan_of(case), Path(), Path(), folder)[0]
    join(order)
    set_seed(1)
    model = model_of(case, shape)
    if case.method is not MethodType.FULL:
        model = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, **LORA), autocast_adapter_dtype=False)
    task_of(order.plan).set_up(model, 0)
    batching = task_of(order.plan).batching(model, 0)
    rows = Rows(case.length, int(shape["vocab_size"]))
    data = VirtualDataset(rows, 1, STEPS, 1, items=lambda row: case.length - 1, dealt=batching.dealt)
    return Parts(order, model, data, batching.collate)


def ours(case: Case, shape: dict[str, Any], folder: Path, clock: Clock) -> None:
    """Train with the worker's own trainer on DeepSpeed."""
    import torch

    from finetune_trainer.worker.arguments import training_arguments
    from finetune_trainer.worker.tasks import task_of
    from finetune_trainer.worker.trainer import FineTuneTrainer

    parts = parts_of(case, shape, folder)
    args = training_arguments(parts.order)
    trainer: Any = FineTuneTrainer(
        parts.order,
        None,  # type: ignore[arg-type]
        parts.model,
        args,
        task=task_of(parts.order.plan),
        head=task_of(parts.order.plan).loss(parts.model),
        data=parts.data,
        train_dataset=parts.data,
        data_collator=parts.collate,
        callbacks=[clock.callback()],
    )
    trainer.save_checkpoint = lambda: None
    trainer.train()
    assert all(torch.isfinite(weight).all() for weight in parts.model.parameters() if weight.requires_grad)


def bare(case: Case, shape: dict[str, Any], folder: Path, clock: Clock) -> None:
    """Train with a hand-written loop around DeepSpeed's engine, which reads the loss of every step, as ours does."""
    import deepspeed
    import torch

    from finetune_trainer.worker.tasks import task_of

    parts = parts_of(case, shape, folder)
    plan = parts.order.plan
    head = task_of(plan).loss(parts.model)
    rate = {
        "lr": plan.schedule.learning_rate,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "torch_adam": True,
    }
    sizes = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 1, "gradient_accumulation_steps": 1}
    own = {"gradient_clipping": 1.0, "bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": rate}}
    engine, *_ = deepspeed.initialize(model=parts.model, config={**plan.engine.deepspeed, **sizes, **own})
    engine.train()
    loader = torch.utils.data.DataLoader(parts.data, batch_size=1, collate_fn=parts.collate)
    for step, batch in enumerate(loader, 1):
        placed = {name: one.to(engine.device) if hasattr(one, "to") else one for name, one in batch.items()}
        loss = head(engine, placed).total / parts.data.step_items(step)
        engine.backward(loss)
        engine.step()
        loss.item()
        clock.tick()


def trl(case: Case, shape: dict[str, Any], folder: Path, clock: Clock) -> None:
    """Train with TRL's SFTTrainer as its users run it on one GPU, without recomputation, as ours."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(1)
    words = int(shape["vocab_size"])
    given = [Rows(case.length, words)[index] for index in range(STEPS)]
    data = Dataset.from_list([{name: ids.tolist() for name, ids in row.items()} for row in given])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    args = SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=1,
        max_steps=STEPS,
        max_length=case.length,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    SFTTrainer(
        model=model_of(case, shape),
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type=TaskType.CAUSAL_LM, **LORA),
        callbacks=[clock.callback()],
    ).train()


if __name__ == "__main__":
    sys.exit(main())
