"""The figures of a run of this tier, and the page that is made of them.

Tests leave `LAST`; `python -m tests.real --record` copies it to benchmarks/real_decoder.json and writes the page.
"""

import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAST = ROOT / "build" / "real" / "figures.json"
RECORD = ROOT / "benchmarks" / "real_decoder.json"
PAGE = ROOT / "docs" / "real-decoder.md"
FIGURES = {"code_loss", "base_loss", "tuned_loss", "answers", "killed_seconds"}  # each of another test
LIBRARIES = ("torch", "transformers", "deepspeed", "peft")


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def machine() -> dict[str, Any]:
    """Return cores, and the load of the last minute before the run."""
    return {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d")}


def write() -> None:
    """Keep the figures of the last run, and write the page.

    Raises:
        SystemExit: not all tests ran.
    """
    missing = FIGURES - json.loads(LAST.read_text()).keys()
    if missing:
        raise SystemExit(f"the run lacks {', '.join(sorted(missing))}: record a run of all tests")
    RECORD.write_text(LAST.read_text())
    PAGE.write_text(page(), "utf-8")


def page() -> str:
    """Return docs/real-decoder.md."""
    found: dict[str, Any] = json.loads(RECORD.read_text())
    (middle, at_middle), (end, at_end) = found["eval_losses"]
    made = found["versions"]
    lines = [
        "# A real decoder, tuned",
        "",
        "Made by `make test-real RECORD=1`; `benchmarks/real_decoder.json` has every figure. "
        "[What the tier does](development/real-models.md).",
        "",
        "Gemma 3 of 270 million parameters, a base model that was not tuned to chat, learns to say in one sentence",
        "what a function of Python's standard library does. `finetune run` trains a LoRA adapter (rank 8) on two nodes",
        f"of one process each, DeepSpeed on CPU, float32, in {found['steps']} steps of {found['global_batch']} rows.",
        "The learning rate is the plan's. The base model was never taught `<end_of_turn>`: prepare says so, and the",
        "job trains that row of the embedding too. Held-out rows come from other files than training rows.",
        "",
        "| on held-out rows | loss per token |",
        "| --- | --- |",
        f"| base model | {found['base_loss']:.3f} |",
        f"| after {middle} steps | {at_middle:.3f} |",
        f"| after {end} steps | {at_end:.3f} |",
        f"| the artifact in plain transformers and peft, in another process | {found['tuned_loss']:.3f} |",
        "",
        "| | |",
        "| --- | --- |",
        f"| `finetune run`, from start to artifact | {found['seconds']} s; {found['train_seconds']} s are steps |",
        f"| tokens per second, both ranks | {found['tokens_per_second']:.0f} |",
        f"| peak memory of a rank | {found['peak_mib']:,} MiB |",
        f"| the same run with a worker killed by SIGKILL in mid-run | {found['killed_seconds']} s, "
        f"{found['lost_steps']} steps made again; each loss and each byte of the adapter are the same |",
        f"| loss of the base model on the standard library's `json/decoder.py` | {found['code_loss']:.3f} |",
        f"| machine | {found['machine']['cores']} cores without a GPU, load {found['machine']['load']} at the start, "
        f"{found['machine']['date']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in made.items())} |",
        "",
        "## Answers",
        "",
        "The likeliest answer, to questions of the held-out rows. The tuned model ends each of them itself.",
        "",
        "| question | docstring | base model | tuned |",
        "| --- | --- | --- | --- |",
    ]
    for answer in found["answers"]:
        cells = [shown(answer[name]) for name in ("prompt", "written", "base", "tuned")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(text: str) -> str:
    """Return a text for a cell of a table: one line of code, at most 100 characters."""
    line = " ".join(text.replace("|", "/").replace("`", "'").split())
    return f"`{line[:97]}...`" if len(line) > 100 else f"`{line}`"
