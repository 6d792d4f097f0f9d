"""Case: a batch that does not fit: what torch raises, and what the product makes of it."""

import resource
from pathlib import Path

from finetune_api.contract import ExitCode
from finetune_api.messages import MethodType, Task
from finetune_trainer.prepare.plan.engine import deepspeed_config
from tests.gpu.case import Bench, Case
from tests.gpu.models import SMALL, TINY, make_llama
from tests.gpu.ranks import in_child, run
from tests.local.harness import make_plan, orders, write_dataset

ROWS = 8192  # a step of 18 tokens a row: 80 GB of logits in float32
WORDS = {True: 20_000, False: 150_000}  # of the vocabulary, by whether this is a rehearsal
CPU_BYTES = 1 << 30  # that a rehearsal's worker may take beyond what it has


def out_of_memory(bench: Bench) -> None:
    """Train a batch whose logits alone are larger than any GPU's memory."""
    model = bench.folder / "model"
    in_child(lambda: make_llama(model, TINY if bench.tiny else SMALL, WORDS[bench.tiny]))
    data = write_dataset(bench.folder / "data", Task.CAUSAL_LM, rows=ROWS)
    training = {} if bench.tiny else {"bf16": True}
    sizes = {"micro_batch": ROWS, "global_batch": ROWS, "max_steps": 1}
    layout = {"deepspeed": deepspeed_config(2, None, training), "training": training}
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, world=1, **sizes, **layout)
    order = orders(plan, model, data, bench.folder / "run")[0]
    done = run(order, bench.folder / "run", limit if bench.tiny else None)
    print(done.log)
    said = done.errors()[-1] if done.errors() else ""
    bench.note(exit_code=done.code, said=said[:300])
    bench.expect(done.code == ExitCode.OUT_OF_MEMORY, f"the worker ended with {done.code}: {said[:300]}")
    bench.expect("memory" in said.lower(), f"the worker's last word does not speak of memory: {said[:300]}")


def limit() -> None:
    """Bound this process's address space: a CPU's memory is not to be filled."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bytes_now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (bytes_now + CPU_BYTES, resource.RLIM_INFINITY))


OUT_OF_MEMORY = Case(
    "limits/out of memory",
    f"the worker ends with {int(ExitCode.OUT_OF_MEMORY)} (OutOfMemory), and its last word names the memory",
    out_of_memory,
    90,
)
