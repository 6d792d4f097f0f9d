"""A LoRA adapter merged into a model of 3 GB: our export beside peft's `merge_and_unload`, on the same files, in turns.

Each merge is a process of its own. Memory is what the kernel cannot take back: anonymous pages and pages of shared
memory (RssAnon, RssShmem), sampled every 20 ms. The peak of all resident pages, mapped files included, is recorded
too. Afterwards the weights of both results are compared bit for bit.

    python benchmarks/merge.py [--rounds 2] [--layers 24] [--folder DIR]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LIBRARIES = ("torch", "transformers", "peft", "safetensors")
RECORD = Path(__file__).with_name("merge.json")
WAYS = ("ours", "peft")
HIDDEN, INNER, VOCABULARY, HEADS, RANK = 2048, 5632, 32_000, 16, 16
MIB = 1024  # KiB
AUTO = "AutoModelForCausalLM"
Sample = dict[str, float]


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's)")
    parser.add_argument("--child", choices=("make", *WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        options.folder = Path(folder)
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Run all rounds, compare the results, and write the table, the line and the record."""
    from rich.console import Console
    from rich.table import Table

    size = in_child("make", options)["bytes"]
    samples: dict[str, list[Sample]] = {way: [] for way in WAYS}
    for turn in range(options.rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            shutil.rmtree(options.folder / way, ignore_errors=True)
            samples[way].append(in_child(way, options))
            print(way, samples[way][-1], file=sys.stderr, flush=True)
    table = Table("way", "memory, MiB", "with mapped files, MiB", "s")
    middle = {
        way: {name: statistics.median(one[name] for one in taken) for name in taken[0]}
        for way, taken in samples.items()
    }
    for way in WAYS:
        table.add_row(way, *(f"{middle[way][name]:,.0f}" for name in ("memory_mib", "resident_mib", "seconds")))
    Console().print(table)
    result = {
        "model_gb": round(size / 1e9, 2),
        "memory_mib": round(max(one["memory_mib"] for one in samples["ours"])),
        "peft_memory_mib": round(middle["peft"]["memory_mib"]),
        "seconds_ratio": round(middle["ours"]["seconds"] / middle["peft"]["seconds"], 2),
        "equal_bits": equal(options.folder / "ours", options.folder / "peft"),
    }
    record = {
        "result": result,
        "samples": samples,
        "command": f"python benchmarks/merge.py --rounds {options.rounds} --layers {options.layers}",
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(json.dumps(result))


def in_child(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Return what a process of its own measures."""
    command = [
        sys.executable,
        __file__,
        "--child",
        way,
        "--folder",
        str(options.folder),
        "--layers",
        str(options.layers),
    ]
    made = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    values: dict[str, float] = json.loads(made.stdout.splitlines()[-1])
    return values


def make(options: argparse.Namespace) -> dict[str, float]:
    """Save a LLaMA of random weights in bfloat16, and an adapter on all of its linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=options.layers,
        num_attention_heads=HEADS,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(options.folder / "base", max_shard_size="1GB")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear"))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.02)
    adapted.save_pretrained(str(options.folder / "adapter"))
    return {"bytes": sum(path.stat().st_size for path in (options.folder / "base").glob("*.safetensors"))}


def ours(options: argparse.Namespace) -> Sample:
    """Merge as the export stage does."""
    from finetune_trainer.export.merging.merge import MergeInputs, merge_adapter

    target = options.folder / "ours"
    target.mkdir()
    with Watched() as watched:
        merge_adapter(
            MergeInputs(options.folder / "base", options.folder / "adapter", AUTO, {}), target, lambda line: None
        )
    return watched.sample()


def by_peft(options: argparse.Namespace) -> Sample:
    """Merge as peft's documentation shows."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with Watched() as watched:
        base = AutoModelForCausalLM.from_pretrained(options.folder / "base", dtype=torch.bfloat16)
        merged: Any = PeftModel.from_pretrained(base, str(options.folder / "adapter")).merge_and_unload()
        merged.save_pretrained(options.folder / "peft")
    return watched.sample()


class Watched:
    """The peak memory of this process and the time of a `with` statement. Imports count as memory, not as time."""

    def __enter__(self) -> "Watched":
        self._peaks = {"RssAnon": 0, "RssShmem": 0, "VmRSS": 0, "memory": 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.monotonic() - self._began
        self._ended.set()
        self._thread.join()

    def sample(self) -> Sample:
        """Return MiB and seconds."""
        memory, resident = self._peaks["memory"] / MIB, self._peaks["VmRSS"] / MIB
        return {"memory_mib": round(memory, 1), "resident_mib": round(resident, 1), "seconds": round(self._seconds, 2)}

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            now = {
                name: int(value.split()[0])
                for name, _, value in (line.partition(":") for line in lines)
                if name in self._peaks
            }
            now["memory"] = now["RssAnon"] + now["RssShmem"]
            for name, value in now.items():
                self._peaks[name] = max(self._peaks[name], value)


def equal(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same weights, bit for bit."""
    import torch
    from safetensors import safe_open

    def files(folder: Path) -> dict[str, Path]:
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as opened:
                found |= dict.fromkeys(opened.keys(), path)
        return found

    first, second = files(one), files(other)
    if first.keys() != second.keys():
        return False
    for name in first:
        with safe_open(first[name], "pt") as left, safe_open(second[name], "pt") as right:
            if not torch.equal(left.get_tensor(name), right.get_tensor(name)):
                return False
    return True


CHILDREN = {"make": make, "ours": ours, "peft": by_peft}

if __name__ == "__main__":
    main()
