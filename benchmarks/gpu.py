"""Training on one GPU: tokens a second, TFLOP/s and MFU, ours through the worker's trainer, TRL's SFTTrainer beside it.

Llama 3.1 8B, 3.2 3B and 1B shapes with random weights, one row of 4,096 tokens a step, every token trained, bfloat16,
no activation checkpointing: LoRA (rank 16, all linear layers), full fine-tuning, QLoRA. Each case is a process of its
own, forked before CUDA is touched, with a deadline; it prints one JSON line. All of them take under 8 minutes. NOT RUN
YET on a GPU: none has been at hand. `--tiny` runs the same code on a CPU with a tiny shape, to see that it works.

Operations of a token (`prepare.plan.speed.flops_per_token`; PaLM paper, arXiv 2204.02311, appendix B): 6 for each
weight of a matrix in full fine-tuning; 4, and 6 for each of the adapter's, under LoRA, whose frozen weights need no
gradient; 12 x layers x width x tokens for attention's scores, causal ones not counted as half. MFU = operations a
second / dense peak of the GPU in 16 bits (`prepare/plan/gpus.py`).

    python benchmarks/gpu.py [--only TEXT] [--tiny]
"""

import argparse
import importlib.metadata
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NO_GPU = 2  # exit code
if __name__ == "__main__" and "--tiny" not in sys.argv and not Path("/dev/nvidiactl").exists():
    # asking torch would start CUDA, and no fork could use it
    print("no NVIDIA GPU on this machine: nothing was measured (--tiny runs the code on a CPU)", file=sys.stderr)
    sys.exit(NO_GPU)

import numpy as np  # noqa: E402
from gpu_memory import MODELS, llama  # noqa: E402
from measured_step import LORA, fork, imports, result  # noqa: E402

from finetune_api.messages import MethodType, Plan, Task  # noqa: E402
from finetune_trainer.prepare.plan import gpus  # noqa: E402
from finetune_trainer.prepare.plan.engine import deepspeed_config  # noqa: E402
from finetune_trainer.prepare.plan.load import Load  # noqa: E402
from finetune_trainer.prepare.plan.shape import architecture_of  # noqa: E402
from finetune_trainer.prepare.plan.speed import flops_per_token  # noqa: E402
from tests.local.harness import free_port, make_plan, orders  # noqa: E402

STEPS, UNTIMED = 20, 5
DEADLINE = 75  # seconds a case
TINY = llama(64, 2, 4, 2, 176, 512, tied=False)
REFERENCE = {
    "case": "published: NVIDIA NeMo AutoModel, Llama 3 8B LoRA, 4,096 tokens, H100",
    "tokens_per_second": 12473,
    "measured_by_us": False,
}


@dataclass(frozen=True)
class Case:
    """One kind of step; `head` as in `Plan.loss_head`."""

    model: str
    method: MethodType
    trainer: str = "ours"
    head: str = "labelled"
    length: int = 4096

    def __str__(self) -> str:
        return f"{self.model} {self.method} {self.trainer} {self.head}"


GRID = (
    Case("8B", MethodType.LORA),
    Case("8B", MethodType.LORA, "trl"),
    Case("8B", MethodType.LORA, head="chunked"),
    Case("8B", MethodType.LORA, head="liger"),
    Case("1B", MethodType.FULL),
    Case("3B", MethodType.FULL),
    Case("8B", MethodType.QLORA),
)
SMALL = tuple(
    Case("tiny", method, trainer, head, 64)
    for method, trainer, head in (
        (MethodType.LORA, "ours", "labelled"),
        (MethodType.LORA, "ours", "chunked"),
        (MethodType.LORA, "trl", "labelled"),
        (MethodType.FULL, "ours", "labelled"),
        (MethodType.QLORA, "ours", "labelled"),
    )
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
    """Measures; a JSON line for each case, and all of them beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is written")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape on the CPU; nothing is written")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    chosen = [case for case in (SMALL if options.tiny else GRID) if options.only in str(case)]
    imports()
    if any(case.trainer == "trl" for case in chosen):
        from trl import SFTConfig, SFTTrainer  # noqa: F401
    lines = []
    for case in chosen:
        lines.append(measured(case))
        print(json.dumps(lines[-1]), flush=True)
    if not options.tiny:
        print(json.dumps(REFERENCE))
        lines.append(REFERENCE)
    if not options.tiny and not options.only:
        libraries = ("torch", "transformers", "trl", "deepspeed", "peft", "bitsandbytes", "liger-kernel")
        versions = {name: importlib.metadata.version(name) for name in libraries}
        record = {"cases": lines, "versions": versions, "command": "python benchmarks/gpu.py"}
        Path(__file__).with_name("gpu.json").write_text(json.dumps(record, indent=2) + "\n")
    return int(any("error" in line for line in lines))


def measured(case: Case) -> dict[str, Any]:
    """One case in a process of its own: what it says, or why it says nothing."""
    shape = TINY if case.model == "tiny" else MODELS[case.model]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "result"
        pid = fork(path, lambda: told(case, shape, Path(name)))
        try:
            found = result(pid, path) if ended(pid) else {"error": f"not done within {DEADLINE} s"}
        except SystemExit as error:  # one that fails, such as for want of memory, leaves the others
            found = {"error": str(error).splitlines()[-1][:300]}
    return {"case": str(case), **asdict(case), **found}


def ended(pid: int) -> bool:
    """Waits for a child, not longer than the deadline; leaves it to be reaped."""
    until = time.monotonic() + DEADLINE
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.05)
    return True


def told(case: Case, shape: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains; in the child."""
    import torch

    torch.set_num_threads(1 if case.model == "tiny" else 4)
    times: list[float] = []
    train = trl if case.trainer == "trl" else ours
    train(case, shape, folder, clock(times))
    seconds = (times[-1] - times[UNTIMED - 1]) / (len(times) - UNTIMED)
    operations = operations_of(case, shape)
    rate = case.length / seconds
    gpu = gpus.find(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return {
        "tokens_per_second": round(rate, 1),
        "step_seconds": round(seconds, 4),
        "teraflops_per_second": round(rate * operations / 1e12, 4),
        "operations_per_token": operations,
        "mfu": round(rate * operations / (gpu.teraflops * 1e12), 4) if gpu else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
    }


def operations_of(case: Case, shape: dict[str, Any]) -> float:
    """Of a token; the model is counted on the meta device."""
    load = Load(architecture_of(shape, Task.CAUSAL_LM, LORA, 2), case.method, 0, 1, 1, case.length)
    return flops_per_token(load, case.length, 1.0)


def clock(times: list[float]) -> Any:
    """A callback that notes when each step is done on the GPU."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    return Clock()


def model_of(case: Case, shape: dict[str, Any]) -> Any:
    """Random weights in bfloat16; for QLoRA with its linear layers in 4 bits."""
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
    """As `from_pretrained` does while it loads; here there is nothing to load."""
    from finetune_trainer.worker.models.quantized import uncover

    uncover()
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
    """A plan of one rank without ZeRO's copies for adapters, ZeRO-2 for whole models."""
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


def ours(case: Case, shape: dict[str, Any], folder: Path, watch: Any) -> None:
    """The worker's own trainer on DeepSpeed."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import set_seed

    from finetune_trainer.worker.arguments import training_arguments
    from finetune_trainer.worker.batches.choice import batching_of
    from finetune_trainer.worker.rendezvous import join
    from finetune_trainer.worker.sampling import VirtualDataset
    from finetune_trainer.worker.trainer import FineTuneTrainer

    plan = plan_of(case)
    order = orders(plan, Path(), Path(), folder)[0].model_copy(update={"master_port": free_port()})
    join(order)
    args = training_arguments(order)
    set_seed(1)
    model = model_of(case, shape)
    if case.method is not MethodType.FULL:
        model = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, **LORA), autocast_adapter_dtype=False)
    batching = batching_of(plan, model, 0)
    words = int(shape["vocab_size"])
    rows = Rows(case.length, words)
    data = VirtualDataset(rows, 1, STEPS, 1, items=lambda row: case.length - 1, dealt=batching.dealt)
    trainer: Any = FineTuneTrainer(
        order,
        None,  # type: ignore[arg-type]
        model,
        args,
        data=data,
        train_dataset=data,
        data_collator=batching.collate,
        callbacks=[watch],
    )
    trainer._save_checkpoint = lambda *_: None
    trainer.train()
    assert all(torch.isfinite(weight).all() for weight in model.parameters() if weight.requires_grad)


def trl(case: Case, shape: dict[str, Any], folder: Path, watch: Any) -> None:
    """TRL's SFTTrainer as its users run it on one GPU, without recomputation, as ours."""
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
        callbacks=[watch],
    ).train()


if __name__ == "__main__":
    sys.exit(main())
