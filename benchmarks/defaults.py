"""Evaluation of the defaults: the plan's choice for four real tasks, beside a grid of learning rates and batches.

Each point is a job through the real prepare and the real worker, one process with one thread. The plan chooses
everything except the values of the grid. A point is scored as a user would see it: by its best checkpoint, on modules
that were not used for training. Finished points are kept, so an interrupted program continues.

    python -m benchmarks.defaults [--parallel 2] [--cache FOLDER]       # about half an hour on two cores
"""

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import stdlib_tasks, tiny_pretrained

CACHE = Path.home() / ".cache" / "finetune-operator" / "defaults"
RESULT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "defaults.md"
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
BATCHES = (8, 16, 32)
WITHIN = 0.05
NOTHING = 1e-12  # a learning rate
LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "tokenizers")


@dataclass(frozen=True)
class Case:
    """A job of the measurement: `metric` of the evaluation, and further figures to show."""

    name: str
    task: str
    what: str
    model: str
    method: str
    metric: str
    length: int
    shown: tuple[str, ...] = ()

    @property
    def higher(self) -> bool:
        """Return whether a higher metric is better."""
        return not self.metric.endswith("loss")


CASES = (
    Case(
        "classification",
        "classification",
        "the package that a docstring is from, 12 of them",
        "MiniLM, 22.7 million parameters, pre-trained",
        "lora",
        "eval_macro_f1",
        32,
        ("eval_accuracy",),
    ),
    Case(
        "seq2seq",
        "seq2seq",
        "the summary line of a docstring",
        "a T5 of 1.2 million parameters, pre-trained for minutes",
        "full",
        "eval_loss",
        128,
        ("eval_chrf",),
    ),
    Case(
        "causal-lm",
        "causal-lm",
        "the second half of a function",
        "a LLaMA of 1.0 million parameters, pre-trained for minutes",
        "full",
        "eval_loss",
        160,
        ("eval_chrf",),
    ),
    Case(
        "causal-lm-lora",
        "causal-lm",
        "the second half of a function",
        "a LLaMA of 1.0 million parameters, pre-trained for minutes",
        "lora",
        "eval_loss",
        160,
        ("eval_chrf",),
    ),
)


@dataclass(frozen=True)
class Point:
    """One run; None = the plan's choice.

    Attributes:
        trained: False for one step with no effect, which gives the score without training.
    """

    case: Case
    rate: float | None = None
    batch: int | None = None
    trained: bool = True

    @property
    def name(self) -> str:
        if not self.trained:
            return f"{self.case.name}-untrained"
        return f"{self.case.name}-" + ("default" if self.rate is None else f"{self.rate:g}-{self.batch}")

    def job(self, base: Path, folder: Path) -> dict[str, Any]:
        """Return the job. Its evaluation is the benchmark's, so that it costs the same everywhere."""
        training: dict[str, Any] = {"eval_steps": 0.34}
        if self.rate is not None:
            training |= {"learning_rate": self.rate, "global_batch_size": self.batch}
        if not self.trained:
            training = {"max_steps": 1, "warmup_steps": 0, "learning_rate": NOTHING}
        return {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "defaults"},
            "spec": {
                "task": self.case.task,
                "model": {"uri": f"file://{base}"},
                "dataset": {
                    "train": f"file://{folder}/train.jsonl",
                    "eval": f"file://{folder}/eval.jsonl",
                    "maxLength": self.case.length,
                },
                "method": {"type": self.case.method},
                "training": training,
                "evaluation": {} if self.case.task == "classification" else {"generate": 24, "maxNewTokens": 32},
                "storage": {"uri": f"file://{folder}/store"},
            },
        }


def points() -> Iterator[Point]:
    """Return the points: the defaults first, then the grid, with its middle before its corners."""
    for case in CASES:
        yield Point(case)
        yield Point(case, trained=False)
    for rate in (1e-3, 3e-3, 3e-4, 1e-4):
        for batch in (16, 8, 32):
            for case in CASES:
                yield Point(case, rate, batch)


def main() -> None:
    """Run the missing points, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one task; nothing is recorded")
    parser.add_argument("--record", action="store_true", help="run nothing: write down what there is so far")
    parser.add_argument("--again", action="store_true", help="run the defaults anew: a rule has changed")
    options = parser.parse_args()
    if options.record:
        record_what_there_is(options.cache)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    import finetune_trainer.prepare.prepare_stage
    import finetune_trainer.worker.rank_run  # noqa: F401 - once, here: every run is forked

    cases = [case for case in CASES if options.only in (None, case.name)]
    in_turns(
        [(build, (case, options.cache)) for case in {case.task: case for case in cases}.values()], options.parallel
    )
    wanted = [point for point in points() if point.case in cases]
    anew = [point for point in wanted if options.again and point.rate is None and point.trained]
    todo = [*anew, *(one for one in wanted if one not in anew and not result_of(options.cache, one).exists())]
    began = time.monotonic()
    in_turns([(measure, (point, options.cache)) for point in todo], options.parallel)
    print(f"{len(todo)} runs in {(time.monotonic() - began) / 60:.0f} minutes", file=sys.stderr)
    missing = [point.name for point in wanted if not result_of(options.cache, point).exists()]
    if missing:
        raise SystemExit(f"{len(missing)} runs failed: {', '.join(missing)}; their logs are in {options.cache}")
    if options.only:
        return
    record_what_there_is(options.cache)


def record_what_there_is(cache: Path) -> None:
    """Write the record and its page; both mark an incomplete grid."""
    results = {point.name: result_of(cache, point) for point in points()}
    record = summary({name: json.loads(path.read_text()) for name, path in results.items() if path.exists()})
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(page(record))
    print(json.dumps({case: round(found["behind"], 4) for case, found in record["cases"].items()}))


def place_of(cache: Path, case: Case) -> Path:
    """Return the folder of a task's data, model and runs; its name depends on all inputs of data and model."""
    recipe = tiny_pretrained.RECIPES.get(case.task)
    made = [asdict(recipe) if recipe else None, stdlib_tasks.VERSION, sys.version]
    return cache / f"{case.task}-{hashlib.sha256(json.dumps(made).encode()).hexdigest()[:12]}"


def result_of(cache: Path, point: Point) -> Path:
    return place_of(cache, point.case) / "points" / f"{point.name}.json"


def in_turns(work: list[tuple[Any, tuple[Any, ...]]], parallel: int) -> None:
    """Run calls, each in a forked process of its own, several at a time."""
    context = multiprocessing.get_context("fork")
    running: list[Any] = []
    for function, arguments in work:
        while len(running) >= parallel:
            multiprocessing.connection.wait([process.sentinel for process in running])
            running = [process for process in running if process.is_alive()]
        process = context.Process(target=function, args=arguments)
        process.start()
        running.append(process)
    for process in running:
        process.join()


# ---------------------------------------------------------------- in a process of its own


def build(case: Case, cache: Path) -> None:
    """Make data and base model of a task, unless they exist."""
    import torch

    torch.set_num_threads(1)
    place = place_of(cache, case)
    if not (place / "data" / "eval.jsonl").exists():
        stdlib_tasks.write(case.task, place / "data")
    base = place / "model"
    if base.exists():
        return
    partial = place / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if case.task == "classification":
        from scripts.quickstart.data import copy_model

        copy_model(partial)
    else:
        tiny_pretrained.pretrain(tiny_pretrained.RECIPES[case.task], partial)
    partial.rename(base)


def measure(point: Point, cache: Path) -> None:
    """Run one point from its job to its scores."""
    from finetune_api.contract import ExitCode, dataset_prefix
    from finetune_api.v1alpha1 import FineTuneJob
    from finetune_trainer.prepare.prepare_stage import prepare
    from finetune_trainer.process.orders import WorkerEvent, WorkerOrder
    from finetune_trainer.storage import open_store
    from finetune_trainer.worker.rank_run import run_rank

    place = place_of(cache, point.case)
    work = place / "work" / point.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    log = os.open(place / f"{point.name}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    job = FineTuneJob.model_validate_json(json.dumps(point.job(place / "model", place / "data")))
    store = open_store(job.spec.storage.uri, {})
    began = time.monotonic()
    plan = prepare(job, store, point.name, work, {}).plan
    events = work / "events.jsonl"
    descriptor = os.open(events, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    order = WorkerOrder(
        plan=plan,
        generation=1,
        rank=0,
        local_rank=0,
        node_rank=0,
        world_size=1,
        local_world_size=1,
        master_host="127.0.0.1",
        master_port=free_port(),
        threads=1,
        model=str(place / "data" / "store" / plan.model.prefix),
        dataset=str(place / "data" / "store" / dataset_prefix(plan.dataset.sha256)),
        checkpoints=str(work / "checkpoints"),
        outputs=str(work / "outputs"),
    )
    code = run_rank(order, descriptor)
    lines = [WorkerEvent.model_validate_json(line) for line in events.read_text().splitlines()]
    evaluations = [event.values for event in lines if event.event == "eval"]
    if not evaluations or code not in (ExitCode.OK, ExitCode.DIVERGED):
        raise SystemExit(f"{point.name}: ended with {code.name} after {len(evaluations)} evaluations")
    choose = max if point.case.higher else min
    best = choose(evaluations, key=lambda values: values.get(point.case.metric, -1e9 if point.case.higher else 1e9))
    found = {
        "learning_rate": plan.schedule.learning_rate,
        "global_batch": plan.layout.global_batch,
        "steps": plan.schedule.max_steps,
        "epochs": plan.schedule.epochs,
        "rows": plan.dataset.train.rows,
        "eval_rows": plan.dataset.eval.rows if plan.dataset.eval else 0,
        "scores": {name: best.get(name) for name in (point.case.metric, *point.case.shown)},
        "course": [values.get(point.case.metric) for values in evaluations],
        "seconds": round(time.monotonic() - began, 1),
        "ended": str(code.name),
    }
    if point.rate is None and point.trained:
        wanted = ("learning_rate", "global_batch_size", "num_train_epochs", "warmup_steps", "lr_scheduler_type")
        chosen = {choice.field.rpartition(".")[2]: [choice.value, choice.reason] for choice in plan.choices}
        found["choices"] = {name: chosen[name] for name in wanted}
    result = result_of(cache, point)
    result.parent.mkdir(exist_ok=True)
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.rename(result)
    shutil.rmtree(work)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- what came of it


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return all runs, and for each task the distance of its defaults from the best of the grid, as a share of the
    best, and their share of the gain of the best over no training.
    """
    cases = {}
    for case in CASES:
        scores = {point.name: score(found, point) for point in points() if point.case == case and point.name in found}
        default, before = scores.pop(Point(case).name), scores.pop(Point(case, trained=False).name)
        best = (max if case.higher else min)(scores, key=scores.__getitem__)
        behind = (scores[best] - default) / scores[best] * (1 if case.higher else -1)
        cases[case.name] = {
            "before": before,
            "default": default,
            "best": scores[best],
            "worst": (min if case.higher else max)(scores.values()),
            "best_point": best,
            "points": len(scores),
            "behind": behind,
            "gained": (default - before) / (scores[best] - before),
        }
    return {
        "cases": cases,
        "within": WITHIN,
        "complete": all(one["points"] == len(RATES) * len(BATCHES) for one in cases.values()),
        "holds": all(one["behind"] <= WITHIN for one in cases.values()),
        "runs": found,
        "described": {case.name: asdict(case) for case in CASES},
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
    }


def score(found: dict[str, dict[str, Any]], point: Point) -> float:
    """Return the metric of a run; the worst possible value if the run gave none."""
    value = found[point.name]["scores"][point.case.metric]
    return float(value) if value is not None else (0.0 if point.case.higher else float("inf"))


def page(record: dict[str, Any]) -> str:
    """Return docs/defaults.md."""
    lines = [
        "# Do the defaults work?",
        "",
        "Made by `python -m benchmarks.defaults`; `benchmarks/defaults.json` has every run.",
        "",
        "The four jobs are made from the standard library of Python. The split is by modules, not by rows: the",
        "scored rows come from files that neither pre-training nor training has read. The defaults are the values that",
        "the plan chooses for a job that names model, data and method. The grid sets learning rate and global batch,",
        "and leaves the other values to the plan. A run counts by its best checkpoint. *Behind* is how much worse the",
        f"defaults are than the best of the 12 points of the grid; the limit is {WITHIN:.0%}. *Gain* is what they gain",
        "over no training, as a share of what the best point gains. It is the stricter measure where all losses are",
        "similar.",
        "",
        "The rate of LLaMA and Qwen models follows the hidden size, by Tinker's fit: 5e-5, times 10 for an adapter,",
        "times (2000 / hidden size) to the power of 0.781 (LLaMA) or 0.0775 (Qwen). Its authors report at most 0.5 %",
        "more loss than the best of their sweeps. Other architectures follow the number of parameters: the rate of a",
        "paper, by the cube root. For a LLaMA of 7 billion parameters the fit gives 2.9e-4 (LoRA) and 2.9e-5 (full),",
        "the papers 2e-4 and 2e-5. No default is above 3e-3: both rules give more for the small LLaMA with an adapter.",
        "With all of its weights, the cube root gave 3.8e-4 and a loss of 4.0773, where the fit gives the row below.",
        "",
        "| task | model | method | metric | points run | untrained | grid's worst | grid's best | defaults | behind "
        "| gain |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        found = record["cases"][case.name]
        best = record["runs"][found["best_point"]]
        own = record["runs"][Point(case).name]
        lines.append(
            f"| {case.what} ({case.task}) | {case.model} | {case.method} | {case.metric.removeprefix('eval_')} "
            f"| {found['points']} of {len(RATES) * len(BATCHES)} "
            f"| {found['before']:.4f} | {found['worst']:.4f} "
            f"| {found['best']:.4f} (rate {best['learning_rate']:g}, batch {best['global_batch']}) "
            f"| {found['default']:.4f} (rate {own['learning_rate']:g}, batch {own['global_batch']}) "
            f"| {100 * found['behind']:+.1f} % | {100 * found['gained']:.0f} % |"
        )
    for case in CASES:
        lines += ["", *grid(record, case)]
    return "\n".join(lines) + "\n"


def grid(record: dict[str, Any], case: Case) -> list[str]:
    """Return the grid of one task and the plan's choice."""
    own = record["runs"][Point(case).name]
    names = [case.metric, *(name for name in case.shown if own["scores"].get(name) is not None)]
    head = " / ".join(name.removeprefix("eval_") for name in names)
    lines = [
        f"## {case.what[0].upper()}{case.what[1:]}",
        "",
        f"{own['rows']} rows, {own['eval_rows']} of them scored apart; {head}:",
        "",
        "| learning rate | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |",
        "| --- |" + " --- |" * len(BATCHES),
    ]
    for rate in RATES:
        runs = [record["runs"].get(Point(case, rate, batch).name) for batch in BATCHES]
        cells = [shown(run, names) if run else "not run" for run in runs]
        lines.append(f"| {rate:g} | " + " | ".join(cells) + " |")
    lines += ["", f"The defaults: {shown(own, names)}.", ""]
    lines += [f"* `{name}`: {value} - {reason}" for name, (value, reason) in own["choices"].items()]
    return lines


def shown(run: dict[str, Any], names: list[str]) -> str:
    return " / ".join("-" if (value := run["scores"].get(name)) is None else f"{value:.4g}" for name in names)


if __name__ == "__main__":
    main()
