"""Chat data to packed tokens: our prepare beside TRL's own functions, on the same file and machine, in turns.

TRL: `load_dataset("json")`, then the preparation that SFTTrainer makes before it trains, `SFTTrainer._prepare_dataset`
with assistant_only_loss and packing (bfd), all settings at their defaults, and once more with a process for each core.
Ours: check every row, load the tokenizer, encode, observe for the quality report, pack and write; the report itself is
timed apart. Every round is a fresh process with fresh caches. Imports are not counted for either; the process of our
tokenizer is. Memory is the sum of the proportional shares (PSS) of the process and its children, sampled.

    python benchmarks/prepare.py [--megabytes 200] [--rounds 3] [--large]     # --large: only ours, with 5 GB
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
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LIBRARIES = ("trl", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "jinja2")
LENGTH = 1024  # TRL's default max_length
CORES = len(os.sched_getaffinity(0))
LARGE = 5000  # megabytes
Sample = dict[str, float]


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only", choices=list(WAYS), help="one way, to look at it; nothing is recorded")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's)")
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(WAYS[options.child](options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Run all rounds and write the table, the line and the record."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.chats import save_tokenizer, write_chats

    made = write_chats(folder / "chats.jsonl", (LARGE if options.large else options.megabytes) * 1_000_000)
    save_tokenizer(folder / "model", folder / "chats.jsonl")
    ways = ["ours"] if options.large else [options.only] if options.only else list(WAYS)
    rounds = 1 if options.large else options.rounds
    samples: dict[str, list[Sample]] = defaultdict(list)
    for _ in range(rounds):
        for way in ways:
            samples[way].append(in_child(way, folder))
            print(way, samples[way][-1], file=sys.stderr)
    counts = {(sample["tokens"], sample["trained"]) for taken in samples.values() for sample in taken}
    table = Table("way", "tokens/s (median)", "min", "max", "peak MiB", "s", "tokens", "trained", "sequences")
    speed = {way: statistics.median(sample["tokens"] / sample["seconds"] for sample in samples[way]) for way in ways}
    peak = {way: max(sample["peak_mib"] for sample in samples[way]) for way in ways}
    for way in ways:
        rates = [sample["tokens"] / sample["seconds"] for sample in samples[way]]
        last = samples[way][-1]
        figures = (speed[way], min(rates), max(rates), peak[way], last["seconds"])
        totals = (last["tokens"], last["trained"], last["sequences"])
        table.add_row(way, *(f"{value:,.0f}" for value in (*figures, *totals)))
    Console(width=140).print(table)
    print("equal work" if len(counts) == 1 else f"UNEQUAL WORK: {sorted(counts)}")
    best = max((speed[way] for way in ways if way.startswith("trl")), default=None)
    if options.only:
        return
    result = {
        "ratio_trl": round(speed["ours"] / best, 2) if best and "ours" in speed else None,
        "tokens_per_second": round(speed["ours"]),
        "peak_mib": round(peak["ours"]),
    }
    key = "large" if options.large else "side_by_side"
    path = ROOT / "benchmarks" / "prepare.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record[key] = {
        "result": result,
        "samples": samples,
        "data": made,
        "equal_work": len(counts) == 1,
        "command": f"python benchmarks/prepare.py {'--large' if options.large else f'--megabytes {options.megabytes}'}",
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "cores": CORES,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(result))


def in_child(way: str, folder: Path) -> Sample:
    """Run one round in a process of its own and watch its memory."""
    caches = Path(tempfile.mkdtemp(prefix="caches-", dir=folder))
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(caches),
        "TMPDIR": str(caches),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, __file__, "--child", way, "--folder", str(folder)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    watching = threading.Thread(target=peak.watch, args=(lambda: process.poll() is None,))
    watching.start()
    out, _ = process.communicate()
    watching.join()
    shutil.rmtree(caches)
    if process.returncode:
        raise SystemExit(f"{way} failed")
    sample: Sample = json.loads(out.splitlines()[-1])
    return {**sample, "peak_mib": round(peak.mib, 1), "peak_after": round(peak.at, 1)}


class Peak:
    """The largest sum of PSS of a process and all its descendants."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._began = time.monotonic()
        self.mib = self.at = 0.0

    def watch(self, alive: Callable[[], bool]) -> None:
        """Sample until the process has ended."""
        while alive():
            now = sum(_pss_kib(pid) for pid in _tree(self._pid)) / 1024
            if now > self.mib:
                self.mib, self.at = now, time.monotonic() - self._began
            time.sleep(0.1)


def _tree(pid: int) -> list[int]:
    try:
        children = [int(child) for path in Path(f"/proc/{pid}/task").iterdir() for child in _children(path)]
    except OSError:
        return []
    return [pid, *(below for child in children for below in _tree(child))]


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


# ---------------------------------------------------------------- the ways, each in its own process


def trl(folder: Path, processes: int | None) -> Sample:
    """Prepare a data set with SFTTrainer's own functions."""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    args = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        assistant_only_loss=True,
        packing=True,
        max_length=LENGTH,
        dataset_num_proc=processes,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    # the attributes that the method reads; __init__ would load a model
    trainer: Any = SimpleNamespace(
        _tokenizer=tokenizer, chat_template=tokenizer.chat_template, completion_only_loss=True
    )
    began = time.monotonic()
    rows = load_dataset("json", data_files=str(folder / "chats.jsonl"), split="train")
    packed = SFTTrainer._prepare_dataset(trainer, rows, tokenizer, args, True, None, "train")
    seconds = time.monotonic() - began
    return {"seconds": seconds, **counted(packed.data.table)}


def ours(folder: Path) -> Sample:
    """Follow the prepare stage from the file to the packed Arrow files, then make the report."""
    from finetune_api.messages import Task
    from finetune_api.v1alpha1 import DatasetSpec
    from finetune_trainer.prepare.data.dataset import check_dataset
    from finetune_trainer.prepare.data.portions import Split
    from finetune_trainer.prepare.data.sources import locate_all
    from finetune_trainer.prepare.quality.judge import Context, judge
    from finetune_trainer.prepare.tokens.job_encoder import encoder_for
    from finetune_trainer.prepare.tokens.tokenize import tokenize
    from finetune_trainer.prepare.tokens.tokenizer import load_fast_tokenizer

    began = time.monotonic()
    spec = DatasetSpec.model_validate({"train": f"file://{folder / 'chats.jsonl'}", "packing": True})
    work = Path(tempfile.mkdtemp())
    data = check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), work, seed=1, has_template=True)
    checked = time.monotonic()
    tokenizer = load_fast_tokenizer(folder / "model", Task.CAUSAL_LM)
    loaded = time.monotonic()
    encoder = encoder_for(spec, Task.CAUSAL_LM, tokenizer, data.layout, LENGTH, None, work)
    made = tokenize(spec, Task.CAUSAL_LM, data, encoder, work / "out")
    ended = time.monotonic()
    report = judge(made.observations[Split.TRAIN], None, Context(Task.CAUSAL_LM, LENGTH))
    report.to_json()
    reported = time.monotonic()
    facts = made.facts.train
    return {
        "seconds": ended - began,
        "check": checked - began,
        "load": loaded - checked,
        "tokenise": ended - loaded,
        "report": reported - ended,
        **counted_in_shards(work / "out", facts.tokens),
    }


def counted(table: Any) -> Sample:
    """Return tokens, tokens with loss and sequences of a packed table."""
    import pyarrow.compute as pc

    tokens = trained = sequences = 0
    for batch in table.to_batches():
        labels = pc.list_flatten(batch.column("labels"))
        tokens += len(labels)
        trained += pc.sum(pc.not_equal(labels, -100)).as_py() or 0
        sequences += batch.num_rows
    return {"tokens": tokens, "trained": trained, "sequences": sequences}


def counted_in_shards(folder: Path, expected: int) -> Sample:
    """Return the same of our shards, which hold runs of tokens with loss in place of labels."""
    import pyarrow as pa
    import pyarrow.compute as pc

    tokens = trained = sequences = 0
    for path in sorted(folder.glob("train-?????.arrow")):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        tokens += pc.sum(pc.list_value_length(table["input_ids"])).as_py()
        trained += int(pc.list_flatten(table["trained_runs"]).to_numpy()[1::2].sum())
        sequences += table.num_rows
    assert tokens == expected
    return {"tokens": tokens, "trained": trained, "sequences": sequences}


WAYS: dict[str, Callable[[Path], Sample]] = {
    "trl": lambda folder: trl(folder, None),
    f"trl, {CORES} processes": lambda folder: trl(folder, CORES),
    "ours": ours,
}

if __name__ == "__main__":
    main()
