"""`make quickstart`: real data, a real model, `finetune run` on two nodes of this machine, and an honest comparison.

Everything it makes lies below build/quickstart. Run again, it goes on where it was; `--fresh` trains anew.
"""

import argparse
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from data import MODEL_FILES, copy_model, make_data
from rich.console import Console
from rich.table import Table

from finetune_api.contract import ExitCode
from finetune_api.v1alpha1.job_files import load_job
from finetune_trainer.export.snippet import HERE
from finetune_trainer.process.ties import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
JOB = Path("manifests/examples/quickstart.yaml")
BUILD = Path("build/quickstart")
ENCODER = BUILD / "model" / "all-MiniLM-L6-v2"
AGAIN = "`make quickstart` again goes on where this stopped"
INTERRUPTED = 130  # what a shell expects after Ctrl-C


def main() -> int:
    """Data, model, training, scores, table; the exit code is that of `finetune run` if it fails."""
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="train anew instead of going on")
    options = parser.parse_args()
    began = time.monotonic()
    console = Console()
    build = ROOT / BUILD
    say(console, "data", "docstrings of this Python's standard library, and a pretrained MiniLM encoder")
    make_data(build / "data")
    copy_model(ROOT / ENCODER)
    say(console, "train", "`finetune run` on two nodes of one process; about 3 minutes on 2 quiet cores")
    code = finetune(["--fresh"] if options.fresh else [])
    if code != ExitCode.OK:
        console.print(AGAIN if code == INTERRUPTED else f"`finetune run` ended with {code}: its message is above")
        return code
    run = json.loads((build / "run.json").read_text("utf-8"))
    [artifact] = run["artifacts"]
    adapter = Path(artifact["uri"].removeprefix("file://"))
    say(console, "scores", "the adapter and the baselines, with vanilla peft in another process; about a minute")
    scores = all_scores(build, adapter, load_job(ROOT / JOB).spec.dataset.max_length or 512)
    result = summary(run, artifact, scores, earlier(build), time.monotonic() - began)
    (build / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    show(console, result, scores)
    return ExitCode.OK


def say(console: Console, step: str, text: str) -> None:
    """One line: which step begins."""
    console.print(f"[bold]{step:<9}[/bold] {text}", highlight=False, soft_wrap=True)


def finetune(flags: list[str]) -> int:
    """`finetune run`; Ctrl-C and other requests to stop are passed on, once each."""
    command = [sys.executable, "-m", "finetune_trainer.commands.main", "run", str(JOB), *flags]
    places = ["--work-dir", str(BUILD / "work"), "--result", str(BUILD / "run.json")]
    child = subprocess.Popen(
        [*command, *places],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        # Ctrl-C in a terminal reaches a whole process group: together with what is passed on it would count as the
        # second one, which kills without saving
        start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),  # a run left behind would hold the job's lock
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def all_scores(build: Path, adapter: Path, max_length: int) -> dict[str, dict[str, float]]:
    """Scores of the adapter (`tuned`), the `probe` and the `majority`; what did not change is not scored again."""
    inputs = [build / "data" / "train.csv", build / "data" / "eval.csv", Path(__file__).with_name("score.py")]
    inputs += [ROOT / ENCODER / name for name in MODEL_FILES]
    common = ["--data", str(build / "data"), "--max-length", str(max_length)]
    baselines = digest(inputs, str(max_length))
    tuned = digest([*inputs, adapter / "MANIFEST.json"], str(max_length))
    cache = build / "scores.json"
    known: dict[str, Any] = json.loads(cache.read_text("utf-8")) if cache.exists() else {}
    missing = [] if tuned in known else ["--adapter", str(adapter)]
    missing += [] if baselines in known else ["--encoder", str(ROOT / ENCODER)]
    if missing:
        script, out = Path(__file__).with_name("score.py"), build / "scores.partial"
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore::FutureWarning"}  # peft 0.21 uses an older name
        command = [sys.executable, str(script), *common, *missing, "--out", str(out)]
        subprocess.run(command, env=quiet, check=True)
        fresh = json.loads(out.read_text("utf-8"))
        if "tuned" in fresh:
            known[tuned] = {"tuned": fresh.pop("tuned")}
        if fresh:
            known[baselines] = fresh
        out.write_text(json.dumps(known, indent=2) + "\n")
        out.replace(cache)
    return {**known[tuned], **known[baselines]}


def digest(paths: list[Path], text: str) -> str:
    """sha256 over files and a text, hex."""
    total = hashlib.sha256(text.encode())
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def earlier(build: Path) -> dict[str, Any]:
    """What an earlier invocation wrote, if one came so far."""
    path = build / "result.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def summary(
    run: dict[str, Any],
    artifact: dict[str, Any],
    scores: dict[str, dict[str, float]],
    before: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """result.json: `seconds` is the wall clock of the invocation that trained, from its start to the scores.

    Raises:
        SystemExit: the adapter does not do what training reported.
    """
    reported, seen = artifact["metrics"]["eval_accuracy"], scores["tuned"]["accuracy"]
    if seen != reported:
        raise SystemExit(f"training reported an accuracy of {reported}, but the adapter as loaded by peft has {seen}")
    if run["already_complete"] and before.get("adapter") == artifact["uri"]:
        seconds = before["seconds"]
    return {
        "accuracy": seen,
        "macro_f1": scores["tuned"]["macro_f1"],
        "probe_accuracy": scores["probe"]["accuracy"],
        "probe_macro_f1": scores["probe"]["macro_f1"],
        "majority_accuracy": scores["majority"]["accuracy"],
        "tokens_per_second": run["tokens_per_second"],
        "seconds": round(seconds, 1),
        "adapter": artifact["uri"],
        "report": run.get("report"),
    }


def show(console: Console, result: dict[str, Any], scores: dict[str, dict[str, float]]) -> None:
    """The table, where the adapter lies, and code that loads it."""
    table = Table("on held-out rows", "accuracy", "macro-F1", title_justify="left")
    rows = {
        "tuned": "fine-tuned with LoRA",
        "probe": "logistic regression on the frozen encoder",
        "majority": "majority class",
    }
    for name, text in rows.items():
        table.add_row(text, f"{scores[name]['accuracy']:.4f}", f"{scores[name]['macro_f1']:.4f}")
    console.print(table)
    ahead = 100 * (result["macro_f1"] - result["probe_macro_f1"])
    console.print(
        f"{ahead:+.1f} points of macro-F1 over the logistic regression; {result['tokens_per_second']:,.0f} tokens/s in "
        f"training; {result['seconds']:,.0f} s in all",
        highlight=False,
        soft_wrap=True,
    )
    adapter = Path(result["adapter"].removeprefix("file://"))
    card = (adapter / "README.md").read_text("utf-8")
    code = card.split("```python\n")[1].split("```")[0].replace(HERE, f"artifact = {json.dumps(str(adapter))}")
    console.print(
        f"\nadapter: {adapter}\n\nIt loads with transformers and peft alone:\n", highlight=False, soft_wrap=True
    )
    console.print(code, markup=False, highlight=False, soft_wrap=True)
    if result["report"]:
        console.print(f"report: {Path(result['report'].removeprefix('file://'))}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"\nstopped; {AGAIN}", file=sys.stderr)
        sys.exit(INTERRUPTED)
