"""Prepare of data that is larger than memory: speed, peak memory, bytes on disk, and what a killed stage repeats.

The path of the prepare stage: every row checked, tokenised by a process for each core, packed, observed, written as
shards into storage (a folder), the report, and the shards published. Each measurement is a process of its own; memory
is the sum of the proportional shares (PSS) of it and its children, sampled ten times a second.

    python benchmarks/scale.py [--gigabytes 1]          # chats of this size
    python benchmarks/scale.py --kill [--gigabytes 1]   # the same, killed (SIGKILL) after half its shards, tried again
    python benchmarks/scale.py --rows 1 4 16            # millions of rows of a few words: what memory grows with
    python benchmarks/scale.py --observed 100           # the report alone, on millions of rows without tokenisation

Beyond 4 GB the data repeats the first four with other beginnings of the questions. The record is `scale.json`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LENGTH = 1024
LIBRARIES = ("tokenizers", "pyarrow", "numpy", "jinja2")
GB = 1_000_000_000
DISTINCT = 4  # generated files of a gigabyte; further files are derived from them
QUESTION = b'"role": "user", "content": "'
RECORD = ROOT / "benchmarks" / "scale.json"
Sample = dict[str, Any]


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", help="millions")
    parser.add_argument("--observed", type=int, help="millions")
    parser.add_argument("--folder", type=Path, help="where files are made, and kept if they were there")
    parser.add_argument("--child", choices=["chats", "rows", "observed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        ways = {"observed": lambda: observed(options.folder, options.observed)}
        print(json.dumps(ways.get(options.child, lambda: prepared(options.folder, options.child))()))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        work = Path(scratch)
        inputs = (options.folder or work) / "in"
        if options.observed:
            key = f"observed, {options.observed} million rows"
            samples = {key: finish(*start(work, "observed", f"--observed={options.observed}"))}
        elif options.rows:
            samples = {f"{count} million rows": measured(rows_of(work, count), "rows") for count in options.rows}
            key = "rows"
        else:
            data = chats_of(inputs, work, options.gigabytes)
            name = f"{options.gigabytes:g} GB"
            key = f"killed, {name}" if options.kill else name
            samples = killed(data) if options.kill else {name: measured(data, "chats")}
    show(key, samples)


# ---------------------------------------------------------------- data


def chats_of(inputs: Path, work: Path, gigabytes: float) -> Path:
    """Return a folder with `data/` (links to files of a gigabyte) and `model/`, a tokenizer."""
    from benchmarks.chats import save_tokenizer, write_chats

    inputs.mkdir(parents=True, exist_ok=True)
    (work / "data").mkdir()
    remaining, number = gigabytes, 0
    while remaining > 0:
        size = min(1.0, remaining)
        name = f"chats-{number:02}.jsonl" if size == 1 else f"chats-{number:02}-{size:g}.jsonl"
        path, partial = inputs / name, inputs / f"{name}.partial"
        if not path.exists():
            if number < DISTINCT:
                write_chats(partial, int(size * GB), seed=number)
            else:
                derived(inputs / f"chats-{number % DISTINCT:02}.jsonl", partial, number, int(size * GB))
            partial.rename(path)
        (work / "data" / name).symlink_to(path)
        remaining, number = remaining - size, number + 1
    save_tokenizer(work / "model", next(iter(sorted((work / "data").iterdir()))))
    return work


def derived(source: Path, target: Path, number: int, size: int) -> None:
    """Write other conversations from those of a file: each question begins with a number."""
    with source.open("rb") as lines, target.open("wb") as file:
        while (block := lines.read(16 << 20)) and file.tell() < size:
            block += lines.readline()
            file.write(block.replace(QUESTION, QUESTION + b"Case %d. " % number))


def rows_of(work: Path, millions: int) -> Path:
    """Return a folder with `data/` of some million rows of two to six words."""
    from benchmarks.chats import save_tokenizer, sentences, write_chats

    folder = work / f"rows-{millions}"
    (folder / "data").mkdir(parents=True)
    words = sorted({word for sentence in sentences() for word in sentence.split() if word.isalpha()})
    draw = random.Random(millions)
    with (folder / "data" / "rows.jsonl").open("w") as file:
        for _ in range(millions * 1000):
            lines = [f'{{"text": "{" ".join(draw.choices(words, k=2 + draw.randrange(5)))}"}}\n' for _ in range(1000)]
            file.writelines(lines)
    write_chats(folder / "chats.jsonl", 20_000_000)
    save_tokenizer(folder / "model", folder / "chats.jsonl")
    return folder


# ---------------------------------------------------------------- measuring


def measured(folder: Path, kind: str) -> Sample:
    """Run one preparation in a process of its own."""
    sample = finish(*start(folder, kind))
    shutil.rmtree(folder / "store")
    shutil.rmtree(folder / "scratch")
    return sample


def killed(folder: Path) -> dict[str, Sample]:
    """Run an undisturbed preparation, then one that is killed after half its shards and tried again."""
    whole = finish(*start(folder, "chats"))
    shutil.rmtree(folder / "store")
    shutil.rmtree(folder / "scratch")
    process, _ = start(folder, "chats")
    state = folder / "store" / "run" / "prepare" / "state.json"
    while not state.exists() or len(json.loads(state.read_text())["splits"]["train"]["shards"]) < whole["shards"] // 2:
        if process.poll() is not None:
            raise SystemExit("it ended before it could be killed: more data is needed")
        time.sleep(0.2)
    shards = len(json.loads(state.read_text())["splits"]["train"]["shards"])
    for child in [*children(process.pid), process.pid]:
        os.kill(child, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder / "scratch")  # a pod that ends loses its disk
    again = finish(*start(folder, "chats"))
    assert again["sha256"] == whole["sha256"], "another data set"
    return {"undisturbed": whole, "tried again": {**again, "shards_before": shards}}


def start(folder: Path, kind: str, *more: str) -> tuple["subprocess.Popen[str]", Any]:
    """Start a preparation, and the watcher of its memory."""
    from benchmarks.prepare import Peak

    (folder / "scratch").mkdir()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder / "scratch")}
    command = [sys.executable, __file__, "--child", kind, "--folder", str(folder), *more]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    threading.Thread(target=peak.watch, args=(lambda: process.poll() is None,), daemon=True).start()
    return process, peak


def finish(process: "subprocess.Popen[str]", peak: Any) -> Sample:
    """Return the figures that it prints, with its memory."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the preparation ended with {process.returncode}")
    return {**json.loads(out.splitlines()[-1]), "peak_mib": round(peak.mib), "peak_after": round(peak.at, 1)}


def children(pid: int) -> list[int]:
    """Return the processes that it has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


# ---------------------------------------------------------------- what is measured, in a process of its own


def prepared(folder: Path, kind: str) -> Sample:
    """Check, tokenise into storage, judge, publish."""
    from finetune_api.messages import Task
    from finetune_api.v1alpha1 import DatasetSpec
    from finetune_trainer.prepare.data.dataset import check_dataset, processes
    from finetune_trainer.prepare.data.portions import Split
    from finetune_trainer.prepare.data.sources import locate_all
    from finetune_trainer.prepare.quality.judge import Context, judge
    from finetune_trainer.prepare.tokens.job_encoder import encoder_for
    from finetune_trainer.prepare.tokens.keeping import StoredShards
    from finetune_trainer.prepare.tokens.tokenize import tokenize
    from finetune_trainer.prepare.tokens.tokenizer import load_fast_tokenizer
    from finetune_trainer.storage import open_store, upload_tree

    def said(line: str) -> None:
        times.append([round(time.monotonic() - began, 1), line])
        print(*times[-1], file=sys.stderr, flush=True)

    times: list[list[Any]] = []
    began = time.monotonic()
    chats = kind == "chats"
    spec = DatasetSpec.model_validate({"train": f"file://{folder / 'data'}/*.jsonl", "packing": chats})
    work = Path(tempfile.mkdtemp())
    data = check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), work, seed=1, has_template=chats, report=said)
    checked = time.monotonic()
    tokenizer = load_fast_tokenizer(folder / "model", Task.CAUSAL_LM)
    encoder = encoder_for(spec, Task.CAUSAL_LM, tokenizer, data.layout, LENGTH, None, work)
    store = open_store(f"file://{folder / 'store'}", {})
    keeper = StoredShards(store, "run/prepare/", work)
    keeper.depends_on("benchmark")
    made = tokenize(spec, Task.CAUSAL_LM, data, encoder, work / "out", report=said, keeper=keeper)
    tokenised = time.monotonic()
    judge(made.observations[Split.TRAIN], None, Context(Task.CAUSAL_LM, LENGTH)).to_json()
    judged = time.monotonic()
    prefix = f"datasets/{made.facts.sha256}/"
    upload_tree(store, made.folder, prefix, "dataset", there=keeper.publish(prefix))
    keeper.clear()
    ended = time.monotonic()
    files = [path for path in (folder / "store" / prefix).iterdir() if path.suffix == ".arrow"]
    facts = made.facts.train
    return {
        "seconds": ended - began,
        "check": checked - began,
        "tokenise": tokenised - checked,
        "report": judged - tokenised,
        "publish": ended - judged,
        "bytes": data.bytes,
        "rows": facts.examples,
        "tokens": facts.tokens,
        "trained": facts.trained_tokens,
        "shards": sum(not path.name.endswith(".index.arrow") for path in files),
        "stored": sum(path.stat().st_size for path in files),
        "sha256": made.facts.sha256,
        "processes": processes(data.bytes),
        "log": times,
    }


def observed(folder: Path, millions: int) -> Sample:
    """Make the report on rows whose lengths and hashes are drawn: a hundredth are copies. The sample is of one row."""
    import numpy as np

    from finetune_api.messages import Task
    from finetune_trainer.prepare.data.examples import Example
    from finetune_trainer.prepare.observed.encoded import Encoded
    from finetune_trainer.prepare.observed.observation import ROW, Observation
    from finetune_trainer.prepare.quality.judge import Context, judge

    seen = Observation(None, millions * 1_000_000, folder=str(folder / "scratch"))
    ids = np.arange(9, dtype=np.int32)
    seen.add([Example(1, "What is it?", completion="This.")], [Encoded(ids, ids > 4, None, 9)])
    draw = np.random.default_rng(0)
    began = time.monotonic()
    for number in range(4 * millions):
        rows = np.zeros(250_000, ROW)
        rows["tokens"] = rows["full"] = draw.lognormal(5, 1, len(rows)).astype(np.int32) + 2
        rows["trained"] = rows["tokens"] // 2
        rows["line"] = np.arange(len(rows)) + number * len(rows)
        rows["label"], rows["answer"] = -1, 2
        rows["content"] = rows["given"] = draw.integers(0, 2**63, len(rows), np.uint64) * np.uint64(2)
        rows["content"][:2500] = np.arange(2500)
        seen.take_rows({"rows": rows})
    seen.files = [("rows.jsonl", len(seen))]
    written = time.monotonic()
    report = judge(seen, None, Context(Task.CAUSAL_LM, LENGTH))
    ended = time.monotonic()
    on_disk = len(seen) * ROW.itemsize
    return {
        "seconds": ended - began,
        "report": ended - written,
        "bytes": on_disk,
        "rows": len(seen),
        "tokens": report.train.tokens,
        "distinct": report.train.distinct_rows,
        "shards": 0,
        "stored": on_disk,
    }


# ---------------------------------------------------------------- the record


def show(key: str, samples: dict[str, Sample]) -> None:
    """Print the table and the line, and write the record."""
    from rich.console import Console
    from rich.table import Table

    table = Table("data", "s", "MB/s", "rows/s", "tokens/s", "peak MiB", "bytes a token", "shards", "report s")
    for name, one in samples.items():
        seconds = one["seconds"]
        figures = [
            f"{seconds:,.0f}",
            f"{one['bytes'] / seconds / 1e6:.1f}",
            f"{one['rows'] / seconds:,.0f}",
            f"{one['tokens'] / seconds:,.0f}",
            f"{one['peak_mib']:,}",
            f"{one['stored'] / one['tokens']:.2f}",
            str(one["shards"]),
            f"{one['report']:.1f}",
        ]
        table.add_row(name, *figures)
    Console(width=120).print(table)
    last = list(samples.values())[-1]
    result = {
        "data": key,
        "gigabytes_per_second": round(last["bytes"] / last["seconds"] / GB, 4),
        "rows_per_second": round(last["rows"] / last["seconds"]),
        "peak_mib": max(one["peak_mib"] for one in samples.values()),
        "bytes_per_token": round(last["stored"] / last["tokens"], 2),
    }
    if "tried again" in samples:
        result["seconds_undisturbed"] = round(samples["undisturbed"]["seconds"], 1)
        result["seconds_tried_again"] = round(last["seconds"], 1)
        result["shards_before_the_kill"] = last["shards_before"]
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[key] = {
        "result": result,
        "samples": samples,
        "command": " ".join(["python benchmarks/scale.py", *(one for one in sys.argv[1:] if "/" not in one)]),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[2],
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
