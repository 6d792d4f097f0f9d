"""GPU memory of a worker, phase by phase, beside the prediction of the plan: models of 0.5 to 8 billion parameters.

The whole program of a worker runs, from loading the weights to the last save: three steps, an evaluation, a checkpoint.
Its own reports separate the phases. The prediction is compared with torch.cuda.max_memory_allocated during training.
The record also has loading, evaluation and saving, the memory that torch has reserved, and the usage that the driver
reports, the context of CUDA included. Models have random weights; each case is a process of its own, forked before CUDA
is initialised. This is part of the GPU check (docs/development/gpu.md); `--tiny` runs tiny shapes on a CPU, by resident
memory.

    python benchmarks/gpu_memory.py [--only TEXT] [--tiny]
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from measured_step import LORA, ROOT, fork, imports, memory, reset, result
from memory import LIBRARIES, MIB, summary

from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan

sys.path.insert(0, str(ROOT))

from finetune_trainer.prepare.plan.engine import deepspeed_config
from finetune_trainer.prepare.plan.memory import CUDA_CONTEXT, IMPORTS, Name, predict
from finetune_trainer.prepare.plan.rank_load import Load
from finetune_trainer.prepare.plan.shape import architecture_of
from tests.gpu.models import llama_shape, make_llama
from tests.gpu.ranks import in_child
from tests.gpu.ranks import run as run_rank
from tests.local.harness import make_plan, orders

NO_GPU = 2  # exit code
STEPS = 3
SAVED_BYTES = 20 << 30  # larger checkpoints are skipped: each would take the time of three other cases


def llama(
    hidden: int, layers: int, heads: int, groups: int, intermediate: int, words: int, tied: bool
) -> dict[str, Any]:
    """Return a configuration of the LLaMA family."""
    shape = llama_shape(hidden, layers, heads, groups, intermediate)
    return {"model_type": "llama", **shape, "vocab_size": words, "tie_word_embeddings": tied}


MODELS = {
    "0.5B": llama(896, 24, 14, 2, 4864, 151936, True),
    "1B": llama(2048, 16, 32, 8, 8192, 128256, True),
    "3B": llama(3072, 28, 24, 8, 8192, 128256, True),
    "8B": llama(4096, 32, 32, 8, 14336, 128256, False),
    "tiny": llama(256, 4, 4, 2, 512, 8192, False),
}
PARAMETERS = {"0.5B": 0.49e9, "1B": 1.24e9, "3B": 3.21e9, "8B": 8.03e9, "tiny": 6e6}


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
    Case("8B", "lora", 2, 1, 2048),
    Case("8B", "lora", 2, 4, 4096, checkpointing=True),
    Case("8B", "lora", 3, 2, 2048, checkpointing=True),
    Case("1B", "full", 2, 4, 2048, checkpointing=True),
    Case("1B", "full", 1, 2, 1024),
    Case("1B", "lora", 2, 4, 2048),
    Case("3B", "full", 2, 1, 512),
    Case("3B", "lora", 2, 4, 2048, checkpointing=True),
    Case("3B", "lora", 0, 2, 2048),
    Case("0.5B", "full", 2, 4, 1024),
    Case("0.5B", "full", 3, 2, 1024),
    Case("0.5B", "lora", 2, 8, 1024),
)
SMALL = (Case("tiny", "lora", 2, 4, 128), Case("tiny", "full", 3, 2, 128, checkpointing=True))


def write_rows(case: Case, folder: Path) -> Path:
    """Write random tokens, all rows of the full length: enough for every step, and for an evaluation batch of twice as
    many rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(0)
    for name, count in (("train", case.batch * STEPS), ("eval", 2 * case.batch)):
        words = MODELS[case.model]["vocab_size"]
        ids = pa.array(
            [source.integers(5, words - 5, case.length).tolist() for _ in range(count)], pa.list_(pa.int32())
        )
        table = pa.table({"input_ids": ids, "labels": ids})
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return folder


def plan_of(case: Case) -> Plan:
    """Return the plan of a case, with the DeepSpeed configuration that the planner writes."""
    training: dict[str, Any] = {} if case.model == "tiny" else {"bf16": True}
    training |= {"activation_checkpointing": True} if case.checkpointing else {}
    return make_plan(
        Task.CAUSAL_LM,
        MethodType(case.method),
        world=1,
        stage=case.stage,
        micro_batch=case.batch,
        global_batch=case.batch,
        max_steps=STEPS,
        max_length=case.length,
        checkpoint_every_steps=STEPS,
        eval_every_steps=STEPS,
        deepspeed=deepspeed_config(case.stage, None, training),
        training=training,
        lora=LORA if case.method == "lora" else {},
    )


def marks(path: Path) -> Callable[[], None]:
    """Return a patch of the worker whose reports of phases record the peak of the phase that ends."""

    def patch() -> None:
        import torch

        from finetune_trainer.worker import rank_run
        from finetune_trainer.worker.reports.events import Reporter

        on_gpu = torch.cuda.is_available()
        baseline = memory("VmRSS")
        phases: dict[str, dict[str, int]] = {}

        def peaks() -> dict[str, int]:
            if not on_gpu:
                return {"allocated": memory("VmHWM") - baseline, "reserved": 0, "driver": 0}
            free, total = torch.cuda.mem_get_info()
            reserved = torch.cuda.max_memory_reserved()
            return {"allocated": torch.cuda.max_memory_allocated(), "reserved": reserved, "driver": total - free}

        class Marking(Reporter):
            _now = ""

            def phase(self, phase: str, step: int = 0) -> None:
                super().phase(phase, step)
                if self._now:
                    before, seen = phases.get(self._now, {}), peaks()
                    phases[self._now] = {name: max(size, before.get(name, 0)) for name, size in seen.items()}
                    path.write_text(json.dumps(phases))
                    torch.cuda.reset_peak_memory_stats() if on_gpu else reset()
                self._now = phase

        rank_run.Reporter = Marking  # type: ignore[misc]
        reset()

    return patch


def without_saves() -> None:
    """Disable the checkpoints."""
    from finetune_trainer.worker.trainer import FineTuneTrainer

    FineTuneTrainer.save_checkpoint = lambda self: None  # type: ignore[method-assign, assignment]


def predicted(case: Case, device: Literal["cpu", "gpu"] = "gpu") -> tuple[int, str]:
    """Return the prediction of the memory model, without margin and context."""
    architecture = architecture_of(MODELS[case.model], Task.CAUSAL_LM, LORA, 2 if device == "gpu" else 4, device)
    load = Load(
        architecture,
        MethodType(case.method),
        case.stage,
        1,
        case.batch,
        case.length,
        1,
        case.checkpointing,
        device=device,
    )
    made = predict(load)
    apart = CUDA_CONTEXT if device == "gpu" else IMPORTS
    return made.bytes - made.of(Name.MARGIN) - apart, made.moment


def sample(case: Case, models: Path) -> dict[str, Any]:
    """Return a case with its measured and predicted figures.

    Args:
        models: folder of the models on disk, the one of the last case among them.
    """
    tiny = case.model == "tiny"
    model = model_on_disk(case.model, models)
    with tempfile.TemporaryDirectory(dir=models.parent) as name:
        folder = Path(name)
        plan = plan_of(case)
        order = orders(plan, model, write_rows(case, folder / "data"), folder)[0]
        patches = [marks(folder / "phases.json"), *([] if saves(case) else [without_saves])]
        done = run_rank(order.model_copy(update={"threads": 4}), folder, lambda: [patch() for patch in patches])
        if done.code:
            raise SystemExit(f"ended with {done.code}: {done.errors() or done.log[-2000:]}")
        phases: dict[str, dict[str, int]] = json.loads((folder / "phases.json").read_text())
        device: Literal["cpu", "gpu"] = "cpu" if tiny else "gpu"
        guess, moment = result(fork(folder / "predicted", lambda: predicted(case, device)), folder / "predicted")
    trained = phases["train"]["allocated"]
    return {
        "case": str(case),
        **asdict(case),
        "measured_mib": round(trained / MIB, 1),
        "reserved_mib": round(phases["train"]["reserved"] / MIB, 1),
        "driver_mib": round(max(one["driver"] for one in phases.values()) / MIB, 1),
        "predicted_mib": round(guess / MIB, 1),
        "error": round(guess / trained - 1, 4),
        "counts": not tiny,
        "predicted_at": moment,
        "phases_mib": {name: round(one["allocated"] / MIB, 1) for name, one in phases.items()},
    }


def saves(case: Case) -> bool:
    """Return whether a checkpoint is written: 12 bytes a trained parameter of the optimizer, 2 of the weights."""
    return case.method != "full" or 14 * PARAMETERS[case.model] <= SAVED_BYTES


def model_on_disk(name: str, models: Path) -> Path:
    """Return the folder of a model, after the removal of other models for lack of space."""
    folder = models / name
    if not folder.exists():
        shutil.rmtree(models, ignore_errors=True)
        shape = {key: value for key, value in MODELS[name].items() if key not in ("model_type", "vocab_size")}
        in_child(lambda: make_llama(folder, shape, MODELS[name]["vocab_size"]))
    return folder


def main() -> int:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is written")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU; nothing is written")
    options = parser.parse_args()
    if (
        not options.tiny and not Path("/dev/nvidiactl").exists()
    ):  # a query of torch would initialise CUDA before the forks
        print("no NVIDIA GPU on this machine: nothing was measured", file=sys.stderr)
        return NO_GPU
    imports()
    samples = []
    print(f"{'case':<42}{'train':>9}{'reserved':>9}{'driver':>9}{'predicted':>10}{'error':>8}   (MiB)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for case in SMALL if options.tiny else GRID:
            if options.only in str(case):
                began = time.monotonic()
                try:
                    made = sample(case, Path(folder) / "models")
                except SystemExit as error:  # a case that fails, such as for lack of memory, does not end the others
                    print(f"{case!s:<42} failed: {str(error).splitlines()[-1][:200]}", flush=True)
                    continue
                samples.append(made)
                print(f"{row(made)}{time.monotonic() - began:4.0f} s", flush=True)
    if not options.only and not options.tiny:
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


def row(made: dict[str, Any]) -> str:
    """Return a row of the table."""
    sizes = "".join(f"{made[name]:9.0f}" for name in ("measured_mib", "reserved_mib", "driver_mib"))
    return f"{made['case']:<42}{sizes}{made['predicted_mib']:10.0f}{made['error']:+8.1%}  {made['predicted_at']:<9}"


if __name__ == "__main__":
    sys.exit(main())
