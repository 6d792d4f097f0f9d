"""`python -m tests.plans`: docs/plans.md, what is planned for well-known models on well-known cards.

Everything goes through the planner that jobs go through. The models are their published configurations, written as
records here: no hub is asked. Beside it stand what DeepSpeed's own estimators say and what others publish.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType, Task
from finetune_trainer.prepare.plan.architecture import Architecture, Growth, Part
from finetune_trainer.prepare.plan.gpus import GIB, Gpu, find_gpu
from finetune_trainer.prepare.plan.machine import NODE_GPUS, Machine
from finetune_trainer.prepare.plan.rank_layout import RankLayout, Request
from finetune_trainer.prepare.plan.ways import choose

PAGE = Path(__file__).parents[1] / "docs" / "plans.md"
TOKENS = 2048  # of every row
ROWS = 128  # of a step: what 50,000 rows get
CARDS = ("T4", "L4", "A10G", "A100-40GB", "A100-80GB", "H100-80GB", "H200-141GB", "MI300X")
COUNTS = (1, 8, 32)
SHORT = (2, 3)  # layers that are counted
GROWING = ("layers", "rest", "inputs", "head")

LLAMA = {"model_type": "llama", "vocab_size": 128256, "tie_word_embeddings": False, "num_key_value_heads": 8}
MODELS: dict[str, dict[str, Any]] = {
    "Llama-3-8B": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "Llama-3-70B": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "Gemma-2-9B": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    },
    "Mistral-7B": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "tie_word_embeddings": False,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
METHODS = (MethodType.LORA, MethodType.QLORA, MethodType.FULL)

HEAD = f"""# What is planned for well-known models

Made by `python -m tests.plans` (`make generate`); do not edit. How a plan is made: [planning.md](planning.md).

Causal language modelling on 50,000 rows of {TOKENS:,} tokens, {ROWS} rows a step (0.2 % of the rows, to a power of
two), in bfloat16 (float16 on a T4); adapters of rank 16 on all linear layers. 8 GPUs are one node, 32 are four, joined
by the network that is usual for the card. The job states no memory of the nodes, so nothing is offloaded to it.

A cell has the ZeRO stage, the rows of a micro-batch x the micro-batches of a step (`r`: activations are recomputed;
`c`: logits are made in chunks), GiB for each GPU at the peak (with its margin of a tenth), and tokens per second of all
GPUs. Where nothing fits, it has the memory of the smallest layout, and the first change that `finetune plan` proposes.
**We have measured none of it on GPUs**; the rates are fitted to figures that others publish, which are named in
`trainer/finetune_trainer/prepare/plan/speed.py` and `gpus.py`.

`DS` is the result of DeepSpeed's own estimators for the same stage and GPUs, for model states alone, without offload
(`estimate_zero2_model_states_mem_needs`, `estimate_zero3_model_states_mem_needs`). They do not count adapters.
"""

FOOT = """
## What others publish

| source | what | theirs | here |
| --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Published:
    """A figure of others: total GB over all GPUs, as they write it."""

    source: str
    what: str
    theirs: str
    model: str
    method: MethodType
    card: str
    gpus: int


FACTORY = "LLaMA-Factory, README, hardware requirement (estimated; batch and length not stated)"
AXOLOTL = "Axolotl, examples/llama-3/README.md"
OTHERS = (
    Published(FACTORY, "full, 7B, 32 bits", "120 GB", "Qwen2.5-7B", MethodType.FULL, "H200-141GB", 1),
    Published(FACTORY, "LoRA, 7B, 16 bits", "16 GB", "Mistral-7B", MethodType.LORA, "A100-40GB", 1),
    Published(FACTORY, "QLoRA, 7B, 4 bits", "6 GB", "Mistral-7B", MethodType.QLORA, "L4", 1),
    Published(FACTORY, "LoRA, 70B, 16 bits", "160 GB", "Llama-3-70B", MethodType.LORA, "MI300X", 1),
    Published(FACTORY, "QLoRA, 70B, 4 bits", "48 GB", "Llama-3-70B", MethodType.QLORA, "A100-80GB", 1),
    Published(AXOLOTL, "full, 8B, one GPU", "48 GB (8-bit optimizer)", "Llama-3-8B", MethodType.FULL, "MI300X", 1),
    Published(AXOLOTL, "LoRA, 8B, one GPU", "11 GB (8-bit weights)", "Llama-3-8B", MethodType.LORA, "A100-40GB", 1),
    Published(
        "Qwen, README, profiling: Qwen-7B",
        "LoRA, 2,048 tokens, one A100",
        "23.8 GB, 3,150 tokens/s",
        "Qwen2.5-7B",
        MethodType.LORA,
        "A100-80GB",
        1,
    ),
    Published(
        "Qwen, README, profiling: Qwen-7B",
        "QLoRA, 2,048 tokens, one A100",
        "13.9 GB, 2,340 tokens/s",
        "Qwen2.5-7B",
        MethodType.QLORA,
        "A100-80GB",
        1,
    ),
    Published(
        "Qwen, README, profiling: Qwen-72B",
        "QLoRA, 2,048 tokens, one A100",
        "64.1 GB, 275 tokens/s",
        "Llama-3-70B",
        MethodType.QLORA,
        "A100-80GB",
        1,
    ),
    Published(
        "foundation-model-stack/fms-acceleration, a100_80gb.csv: Mistral-7B",
        "LoRA on attention, 4 x 4,096 tokens",
        "26.1 GB, 3,598 tokens/s",
        "Mistral-7B",
        MethodType.LORA,
        "A100-80GB",
        1,
    ),
)


@dataclass(frozen=True)
class Cell:
    """What one machine gets: a layout, or the refusal."""

    machine: Machine
    layout: RankLayout | None
    refusal: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs; 0 where nothing fits."""
        return ROWS * TOKENS / self.layout.speed.seconds if self.layout else 0.0


def machine_with(gpu: Gpu, gpus: int) -> Machine:
    """Nodes of 8 such GPUs, or one node with fewer."""
    nodes, each = max(1, gpus // NODE_GPUS), min(gpus, NODE_GPUS)
    network = gpu.network * each / NODE_GPUS
    return Machine(
        "gpu",
        gpu.memory_bytes,
        gpu.name,
        False,
        nodes,
        each,
        gpu,
        gpus=each,
        network=network,
        network_source=gpu.source,
    )


@cache
def counted(model: str) -> Architecture:
    """A model of the table, from two and three of its layers: all are alike, and few are counted in a second."""
    from finetune_trainer.prepare.plan.shape import architecture_of

    short, longer = (
        architecture_of({**MODELS[model], "num_hidden_layers": layers}, Task.CAUSAL_LM, weight_bytes=2, device="gpu")
        for layers in SHORT
    )
    return extended(short, longer, MODELS[model]["num_hidden_layers"])


def extended(short: Architecture, longer: Architecture, layers: int) -> Architecture:
    """A decoder with more layers like the one by which two of them differ."""
    first = [part for part in short.parts if ".layers.0." in part.name]
    parts: list[Part] = []
    for part in short.parts:
        if ".layers." not in part.name:
            parts.append(part)
        elif part is first[-1]:
            names = [(one, one.name.replace(".layers.0.", f".layers.{at}.")) for at in range(layers) for one in first]
            parts += [one.model_copy(update={"name": name}) for one, name in names]
    more = layers - short.layers
    kept = {
        method: one.model_copy(
            update={
                "trained": one.trained + more * (longer.kept[method].trained - one.trained),
                "largest_layer": longer.kept[method].largest_layer,
                **{name: _beyond(getattr(one, name), getattr(longer.kept[method], name), more) for name in GROWING},
            }
        )
        for method, one in short.kept.items()
    }
    return short.model_copy(update={"parts": tuple(parts), "layers": layers, "kept": kept})


def _beyond(one: Growth, two: Growth, more: int) -> Growth:
    return Growth(
        linear=one.linear + more * (two.linear - one.linear),
        quadratic=one.quadratic + more * (two.quadratic - one.quadratic),
    )


@cache
def cell(model: str, method: MethodType, card: str, gpus: int) -> Cell:
    """What is planned for it."""
    gpu = find_gpu(card)
    assert gpu is not None
    machine = machine_with(gpu, gpus)
    request = Request(
        architecture=counted(model),
        method=method,
        machine=machine,
        rows=ROWS,
        rows_given=False,
        tokens=TOKENS,
        mean_tokens=float(TOKENS),
        methods=() if gpu.name.startswith("MI") or method is MethodType.QLORA else (MethodType.QLORA,),
    )
    if method is MethodType.QLORA and gpu.name.startswith("MI"):
        return Cell(machine, None, "refused: our tests have not run 4-bit weights on an AMD GPU")
    try:
        return Cell(machine, choose(request))
    except SpecError as error:
        (problem,) = error.problems
        needed = problem.message.partition("needs ")[2].partition(" GiB")[0]
        way = problem.message.partition("; fits: ")[2].partition(", or ")[0] or "nothing near it"
        return Cell(machine, None, f"needs {needed} GiB; {way}")


def shown(one: Cell) -> str:
    """`2, 4 x 4 r, 31.1 GiB, 12,300`"""
    if one.layout is None:
        return one.refusal
    load, layout = one.layout.load, one.layout
    marks = (" r" if load.recomputed else "") + (" c" if load.chunked else "")
    speed = float(f"{one.tokens_per_second:.3g}")
    rows = f"{load.micro} x {load.accumulation}{marks}"
    text = f"{load.zero_stage}, {rows}, {layout.memory.bytes / GIB:.1f} GiB, {speed:,.0f}"
    return text + (f" (DS {estimated(one):.1f})" if load.method is MethodType.FULL else "")


def estimated(one: Cell) -> float:
    """GiB a GPU by DeepSpeed's estimators."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    assert one.layout is not None
    load, machine = one.layout.load, one.machine
    shape = load.architecture
    if load.zero_stage == 3:
        _, gpu, _ = estimate_zero3_model_states_mem_needs(
            shape.parameters, shape.largest, machine.processes, machine.nodes, False, False
        )
    else:
        _, gpu = estimate_zero2_model_states_mem_needs(shape.parameters, machine.processes, machine.nodes, False)
    return float(gpu) / GIB


def page() -> str:
    """docs/plans.md."""
    return HEAD + "".join(_tables()) + FOOT + "".join(_published())


def _tables() -> Iterator[str]:
    for model in MODELS:
        yield f"\n## {model} ({counted(model).parameters / 1e9:.2f} billion parameters)\n\n"
        yield "| method | card | " + " | ".join(f"{gpus} GPU{'s' if gpus > 1 else ''}" for gpus in COUNTS) + " |\n"
        yield "| --- | --- |" + " --- |" * len(COUNTS) + "\n"
        for method in METHODS:
            for card in CARDS:
                cells = " | ".join(shown(cell(model, method, card, gpus)) for gpus in COUNTS)
                yield f"| {method} | {card} | {cells} |\n"


def _published() -> Iterator[str]:
    for one in OTHERS:
        ours = cell(one.model, one.method, one.card, one.gpus)
        where = f"{one.model} on {one.gpus} x {one.card}: "
        yield f"| {one.source} | {one.what} | {one.theirs} | {where}{shown(ours)} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
