"""Cost of a step of each optimizer, and of compiled layers, on this CPU: ratios to AdamW and to layers as written.

An optimizer steps one flat float32 share, as ZeRO gives it; Muon and Adafactor step whole matrices of the same size.
`bytes` are those of its states per number. Rounds are interleaved; a ratio is the median over the rounds.

    python benchmarks/optimizers.py [--layers]
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_api.optimizers import OPTIMIZERS, state_bytes
from finetune_api.plan import PlannedCompilation
from finetune_trainer.worker.optimizer_classes import MAKERS

SIDE = 2048  # numbers: its square
ROUNDS, STEPS = 5, 3
ARGUMENTS: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}
LENGTHS = (20, 200)  # tokens of a row, least and most
ROWS, BATCHES = 8, 6
RECORD = Path(__file__).with_suffix(".json")


def made(name: str, weight: torch.nn.Parameter) -> torch.optim.Optimizer:
    """Return an optimizer of one tensor."""
    if name == "muon":
        import torch.distributed as dist
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        muon: torch.optim.Optimizer = MuonWithAuxAdam(
            [{"params": [weight], "lr": 1e-3, "momentum": 0.95, "weight_decay": 0.0, "use_muon": True}]
        )
        return muon
    maker = MAKERS[name]
    return maker.load()([weight], lr=1e-3, **ARGUMENTS.get(name, {}), **maker.implied)  # type: ignore[call-arg]


def prepared(name: str) -> tuple[torch.optim.Optimizer, torch.nn.Parameter]:
    """Return an optimizer and its weight, after the step that makes its states."""
    whole = bool(OPTIMIZERS[name].whole or OPTIMIZERS[name].deepspeed)
    generator = torch.Generator().manual_seed(0)
    shape = (SIDE, SIDE) if whole else (SIDE * SIDE,)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    weight.grad = torch.randn(shape, generator=generator)
    optimizer = made(name, weight)
    optimizer.step()
    return optimizer, weight


def held(optimizer: torch.optim.Optimizer) -> float:
    """Return bytes of the states per number of the weight; maps of 8-bit values, which all weights share, left out."""
    tensors = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and value.dim() and "qmap" not in name
    ]
    return sum(one.numel() * one.element_size() for one in tensors) / SIDE**2


def taken(work: Callable[[], object], times: int) -> float:
    """Return the seconds of one of some calls."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def optimizers() -> list[dict[str, Any]]:
    """Measure every optimizer that runs on a CPU."""
    torch.compiler.set_stance("force_eager")  # as the worker runs Muon
    names = [name for name, spec in OPTIMIZERS.items() if not spec.cuda and name != "adamw_8bit"]
    ready = {name: prepared(name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, (optimizer, _weight) in ready.items():
            seconds[name].append(taken(optimizer.step, STEPS))
    first = seconds["adamw_torch"]
    return [
        {
            "optimizer": name,
            "ratio": round(statistics.median(a / b for a, b in zip(seconds[name], first, strict=True)), 2),
            "bytes": round(held(ready[name][0]), 3),
            "planned_bytes": round(state_bytes(name, ARGUMENTS.get(name, {})), 3),
        }
        for name in names
    ]


# ---------------------------------------------------------------- compiled layers


def layers() -> dict[str, Any]:
    """Measure forward and backward passes of a LLaMA of 4 layers over flat batches, as written and compiled."""
    from torch._dynamo.utils import counters
    from transformers import AutoModelForCausalLM, LlamaConfig

    from finetune_trainer.worker.attention import use_segmented
    from finetune_trainer.worker.compiled_layers import compile_layers, not_compiled

    torch.compiler.set_stance("default")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(use_cache=False, **sizes, **heads)).train()
    use_segmented(model)
    compile_layers(model, PlannedCompilation())
    batches = list(flat_batches())
    began = time.perf_counter()
    losses = {"compiled": passes(model, batches)}
    first = time.perf_counter() - began
    passes(model, batches)
    graphs = counters["stats"]["unique_graphs"]
    with not_compiled():
        losses["as written"] = passes(model, batches)
    seconds: dict[str, list[float]] = {"compiled": [], "as written": []}
    for _ in range(ROUNDS):
        seconds["compiled"].append(taken(lambda: passes(model, batches), 1))
        with not_compiled():
            seconds["as written"].append(taken(lambda: passes(model, batches), 1))
    pairs = zip(seconds["compiled"], seconds["as written"], strict=True)
    apart = max(abs(a / b - 1) for a, b in zip(losses["compiled"], losses["as written"], strict=True))
    return {
        "ratio": round(statistics.median(a / b for a, b in pairs), 2),
        "first_pass_s": round(first, 1),
        "graphs": graphs,
        "graphs_after_more_lengths": counters["stats"]["unique_graphs"],
        "largest_difference": float(f"{apart:.2g}"),
    }


def flat_batches() -> Any:
    """Yield batches of rows of random lengths."""
    from finetune_trainer.worker.batches.flat import FlatTokens

    source = np.random.default_rng(0)
    for _ in range(BATCHES):
        rows = [source.integers(0, 512, length).astype(np.int32) for length in source.integers(*LENGTHS, ROWS)]
        yield FlatTokens()([{"input_ids": row, "labels": row} for row in rows])


def passes(model: Any, batches: list[Any]) -> list[float]:
    """Run forward and backward passes over some batches and return their mean losses."""
    found = []
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name not in ("kept", "targets")}
        logits = model(**inputs).logits.flatten(0, -2)[batch["kept"]]
        loss = torch.nn.functional.cross_entropy(logits, batch["targets"])
        loss.backward()
        model.zero_grad()
        found.append(float(loss.detach()))
    return found


def main() -> None:
    """Measure, print a table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", action="store_true", help="measure compiled layers too; needs a C++ compiler")
    options = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    torch.set_num_threads(1)
    record |= {
        "rounds": ROUNDS,
        "numbers": SIDE**2,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "optimizers": optimizers(),
    }
    if options.layers:
        record["layers"] = layers()
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{'optimizer':20} {'step':>6} {'bytes':>7} {'planned':>8}")
    for one in record["optimizers"]:
        print(f"{one['optimizer']:20} {one['ratio']:6.2f} {one['bytes']:7.3f} {one['planned_bytes']:8.3f}")
    if options.layers:
        print(f"compiled layers: {record['layers']}")


if __name__ == "__main__":
    main()
