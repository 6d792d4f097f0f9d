"""How much memory a training step takes on a GPU, beside what the plan predicts: models of 0.5 to 8 billion parameters.

Written for one GPU of 80 GiB or more and under 8 minutes; NOT RUN YET: no GPU has been at hand, so that the plan's
figures for GPUs rest on formulas, on the code of torch and DeepSpeed, and on what benchmarks/memory.py measured on CPU.
Models are made from configurations with random weights, each case in a process forked before CUDA is touched, two steps
each. Compared is torch.cuda.max_memory_allocated; reserved, which includes fragmentation, stands beside it. The CUDA
context counts in neither and is left out of the prediction too.

    python benchmarks/gpu_memory.py [--only TEXT]
"""

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measured_step import LORA, ROOT, fork, imports, result
from memory import LIBRARIES, MIB, summary

from finetune_api.messages import MethodType, Plan, Task

sys.path.insert(0, str(ROOT))

from finetune_trainer.prepare.plan.engine import deepspeed_config
from finetune_trainer.prepare.plan.load import Load
from finetune_trainer.prepare.plan.memory import CUDA_CONTEXT, Name, predict
from finetune_trainer.prepare.plan.shape import architecture_of
from tests.local.harness import free_port, make_plan

NO_GPU = 2  # exit code
STEPS = 2


def llama(
    hidden: int, layers: int, heads: int, groups: int, intermediate: int, words: int, tied: bool
) -> dict[str, Any]:
    """A configuration of the LLaMA family."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": intermediate,
        "vocab_size": words,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 8192,
    }


MODELS = {
    "0.5B": llama(896, 24, 14, 2, 4864, 151936, True),
    "1B": llama(2048, 16, 32, 8, 8192, 128256, True),
    "3B": llama(3072, 28, 24, 8, 8192, 128256, True),
    "8B": llama(4096, 32, 32, 8, 14336, 128256, False),
}


@dataclass(frozen=True)
class Case:
    """One measured step on one GPU in bfloat16."""

    model: str
    method: str
    stage: int
    batch: int
    length: int
    checkpointing: bool = False

    def __str__(self) -> str:
        flag = " checkpointing" if self.checkpointing else ""
        return f"{self.model} {self.method} ZeRO-{self.stage} {self.batch}x{self.length}{flag}"


GRID = (
    Case("0.5B", "full", 2, 4, 1024),
    Case("0.5B", "full", 0, 1, 1024),
    Case("0.5B", "lora", 2, 8, 1024),
    Case("0.5B", "full", 3, 2, 1024),
    Case("1B", "full", 2, 4, 2048, checkpointing=True),
    Case("1B", "full", 1, 2, 1024),
    Case("1B", "lora", 2, 4, 2048),
    Case("1B", "lora", 3, 2, 2048),
    Case("3B", "full", 2, 1, 512),
    Case("3B", "full", 3, 1, 2048, checkpointing=True),
    Case("3B", "lora", 2, 4, 2048, checkpointing=True),
    Case("3B", "lora", 0, 2, 2048),
    Case("8B", "lora", 2, 1, 2048),
    Case("8B", "lora", 2, 4, 4096, checkpointing=True),
    Case("8B", "lora", 3, 2, 2048, checkpointing=True),
)


class Rows:
    """Rows of random tokens, all of the full length."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.lengths = [case.length] * len(self)

    def __len__(self) -> int:
        return self._case.batch * STEPS

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = np.random.default_rng(index).integers(5, 50_000, self._case.length)
        return {"input_ids": ids.astype(np.int32), "labels": ids.astype(np.int64)}


def plan_of(case: Case) -> Plan:
    """The plan of a case, with the DeepSpeed configuration that the planner writes."""
    training: dict[str, Any] = {"bf16": True}
    training |= {"activation_checkpointing": True} if case.checkpointing else {}
    return make_plan(
        Task.CAUSAL_LM,
        MethodType(case.method),
        world=1,
        stage=case.stage,
        micro_batch=case.batch,
        global_batch=case.batch,
        max_steps=STEPS,
        deepspeed=deepspeed_config(case.stage, None, training),
        training=training,
        lora=LORA if case.method == "lora" else {},
    )


def run(case: Case, port: int, folder: Path) -> dict[str, int]:
    """What a worker does, to the end of the second step; bytes allocated and reserved at most."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    from finetune_trainer.orders import WorkerOrder
    from finetune_trainer.worker.arguments import training_arguments
    from finetune_trainer.worker.batches.choice import batching_of
    from finetune_trainer.worker.rendezvous import join
    from finetune_trainer.worker.sampling import VirtualDataset
    from finetune_trainer.worker.trainer import FineTuneTrainer

    order = WorkerOrder(
        plan=plan_of(case),
        generation=1,
        rank=0,
        local_rank=0,
        node_rank=0,
        world_size=1,
        local_world_size=1,
        master_host="127.0.0.1",
        master_port=port,
        threads=4,
        model="",
        dataset="",
        checkpoints=str(folder),
        outputs=str(folder / "outputs"),
    )
    join(order)
    args = training_arguments(order)
    set_seed(1)
    values = dict(MODELS[case.model])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.use_cache = False
    with torch.device("cuda"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if case.method == "lora":
        model = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, **LORA), autocast_adapter_dtype=False)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    batching = batching_of(order.plan, model, 0)
    data = VirtualDataset(Rows(case), 1, STEPS, case.batch, dealt=batching.dealt)
    trainer: Any = FineTuneTrainer(
        order,
        None,  # type: ignore[arg-type]
        model,
        args,
        data=data,
        train_dataset=data,
        data_collator=batching.collate,
    )
    trainer._save_checkpoint = lambda *_: None
    trainer.train()
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}


def predicted(case: Case) -> tuple[int, str]:
    """What the memory model says, without margin and context."""
    architecture = architecture_of(MODELS[case.model], Task.CAUSAL_LM, LORA, 2, "gpu")
    load = Load(
        architecture,
        MethodType(case.method),
        case.stage,
        1,
        case.batch,
        case.length,
        1,
        case.checkpointing,
        device="gpu",
    )
    made = predict(load)
    return made.bytes - made.of(Name.MARGIN) - CUDA_CONTEXT, made.moment


def sample(case: Case) -> dict[str, Any]:
    """A case as it was measured and predicted."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        measured = result(fork(folder / "measured", lambda: run(case, port, folder)), folder / "measured")
        guess, moment = result(fork(folder / "predicted", lambda: predicted(case)), folder / "predicted")
    return {
        "case": str(case),
        **asdict(case),
        "measured_mib": round(measured["allocated"] / MIB, 1),
        "reserved_mib": round(measured["reserved"] / MIB, 1),
        "predicted_mib": round(guess / MIB, 1),
        "error": round(guess / measured["allocated"] - 1, 4),
        "counts": True,
        "predicted_at": moment,
    }


def main() -> int:
    """Measures, prints a table and one JSON line, and keeps the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is written")
    options = parser.parse_args()
    if not Path("/dev/nvidiactl").exists():  # asking torch would start CUDA, and no fork could use it
        print("no NVIDIA GPU on this machine: nothing was measured", file=sys.stderr)
        return NO_GPU
    imports()
    samples = []
    print(f"{'case':<42}{'allocated':>10}{'reserved':>10}{'predicted':>10}{'error':>8}   (MiB)", flush=True)
    for case in GRID:
        if options.only in str(case):
            began = time.monotonic()
            try:
                made = sample(case)
            except SystemExit as error:  # one that fails, such as for want of memory, leaves the others
                print(f"{case!s:<42} failed: {str(error).splitlines()[-1][:200]}", flush=True)
                continue
            samples.append(made)
            figures = f"{made['measured_mib']:10.0f}{made['reserved_mib']:10.0f}{made['predicted_mib']:10.0f}"
            seconds = time.monotonic() - began
            print(f"{case!s:<42}{figures}{made['error']:+8.1%}  {made['predicted_at']:<9}{seconds:4.0f} s", flush=True)
    if not options.only:
        record = {
            **summary(samples),
            "samples": samples,
            "command": "python benchmarks/gpu_memory.py",
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "cores": len(os.sched_getaffinity(0)),
        }
        (ROOT / "benchmarks" / "gpu_memory.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(summary(samples)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
