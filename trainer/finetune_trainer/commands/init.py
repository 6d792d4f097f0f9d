"""`finetune init`: a job with comments, proposed from a model and a look at the data."""

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from rich.console import Console

from finetune_api import yaml12
from finetune_api.contract import ExitCode
from finetune_api.errors import FineTuneError, Problem, SpecError
from finetune_api.messages import Task
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import DatasetSpec, ModelSpec, parse_job
from finetune_api.v1alpha1.spec_base import MAX_NAME_LENGTH
from finetune_trainer.run.output_paths import probe_file, write_file
from finetune_trainer.run.screen import Screen

DEFAULT = Path("job.yaml")
COLUMNS = re.compile(r"columns: (\{[^{}]*\})")
PLAIN_NAMES = frozenset({"train", "training", "data", "dataset", "rows", "job"})  # they tell nothing of a job


_PREFERENCE = (
    "  # preference:  # names of TRL; left out: DPO for pairs, KTO for answers with a label",
    "  #   loss_type: sigmoid  # or ipo, hinge, robust, sigmoid_norm, orpo, simpo, kto",
    "  #   beta: 0.1",
)


@dataclass(frozen=True)
class Proposal:
    """What model and data show.

    Attributes:
        tasks: what the model can be trained for, `task` among them.
        about: of the data, for a comment.
        rows: good ones; 0 where they could not be counted.
        problems: what is wrong with the data.
    """

    task: Task
    tasks: tuple[Task, ...]
    columns: dict[str, str] = field(default_factory=dict)
    about: str = ""
    rows: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether rows are of this task; a label that only sometimes judges an answer is a label of something else."""
        return bool(self.rows) and not (spec_of(self.task).prefers and self.problems)


def init_command(options: argparse.Namespace, console: Console) -> int:
    """Run `finetune init`."""
    screen = Screen(console)
    model = _model(_asked(console, options.model, "--model", "model (name on the hub, or folder)"))
    data = _data(_asked(console, options.data, "--data", "training data (file, folder or URI)"))
    method = options.method or _asked_or(console, "method (lora, qlora, full)", "lora")
    path = options.output or Path(_asked_or(console, "write the job to", str(DEFAULT)))
    _may_write(console, path)
    probe_file(path, "--output")
    screen.show_line("look", "at the model's configuration and at the data")
    proposal = propose(model, data)
    text = job_text(path, model, data, method, proposal)
    parse_job(yaml12.load(text, str(path))[0])
    write_file(path, text, "--output")
    if proposal.problems:
        screen.problems(proposal.problems)
        screen.show_line("note", "the job is written anyway: fix the data, or add fields to the job")
    screen.show_line("wrote", f"{path}: {proposal.task}, {proposal.about or 'data not understood yet'}")
    screen.show_line("next", f"finetune validate {path}, then finetune run {path}")
    return ExitCode.OK


def propose(model: dict[str, str], data: str) -> Proposal:
    """Look at a model's configuration and at the data; propose a task and columns.

    Raises:
        FineTuneError: the model is unreachable or unusable, or the data does not exist.
    """
    from finetune_trainer.model.families import family_of, resolve_task
    from finetune_trainer.prepare.data.sources import locate_all
    from finetune_trainer.prepare.models import locate_model
    from finetune_trainer.prepare.tokens.templates import has_template

    with tempfile.TemporaryDirectory(prefix="finetune-init-") as folder:
        work = Path(folder)
        source = locate_model(ModelSpec.model_validate(model), os.environ)
        config = source.config(work / "model")
        usual = resolve_task(config, None)
        tasks = family_of(str(config["model_type"])).tasks
        locate_all(DatasetSpec(train=data), os.environ)
        chats = has_template(source.small_files(work / "model"))
        order = sorted(tasks, key=_most_taught, reverse=True)
        looks = {task: _look(data, task, {}, chats, work / "data") for task in order}
        found = next((look for look in looks.values() if look.fits), None)
        for task in [] if found else [usual, *order]:
            for text in (match[1] for one in looks[task].problems if (match := COLUMNS.search(one.cure))):
                columns = yaml12.load(text, "columns")[0]
                again = _look(data, task, columns, chats, work / "data")
                found = found or (again if again.rows else None)
        best = found or looks[usual]
        return Proposal(best.task, tasks, best.columns, best.about, best.rows, best.problems)


def _most_taught(task: Task) -> int:
    """Return how much of a row a task learns: rows with a label, or with two answers, fit a language model, too."""
    spec = spec_of(task)
    return 2 if spec.prefers else int(spec.named)


def _look(data: str, task: Task, columns: dict[str, str], chats: bool, folder: Path) -> Proposal:
    """Read the rows as a task would; report broken ones and skip them."""
    from finetune_trainer.prepare.data.dataset import check_dataset
    from finetune_trainer.prepare.data.sources import locate_all

    spec = DatasetSpec.model_validate(
        {"train": data, "columns": columns, "onInvalid": "Skip", "maxInvalidPercent": 100.0}
    )
    try:
        checked = check_dataset(spec, task, locate_all(spec, os.environ), folder, 0, has_template=chats)
    except FineTuneError as error:
        return Proposal(task, (task,), columns, problems=tuple(error.problems))
    labels = f", {len(checked.labels)} labels" if checked.labels else ""
    problems = tuple(problem for tally in checked.tallies() for problem in tally.problems())
    return Proposal(task, (task,), columns, f"{checked.good:,} rows{labels}", checked.good, problems)


def job_text(path: Path, model: dict[str, str], data: str, method: str, proposal: Proposal) -> str:
    """Return the job's text, with a comment for what a newcomer will want to change."""
    [(kind, place)] = model.items()
    others = ", ".join(task for task in proposal.tasks if task != proposal.task)
    share = _share(proposal.rows)
    columns = "{" + ", ".join(f"{part}: {_scalar(name)}" for part, name in proposal.columns.items()) + "}"
    rank = "    " if method != "full" else "    # only lora and qlora: "
    lines = [
        f"# Fine-tunes {place} on {data}. Written by `finetune init`; change what you like, then:",
        f"#   finetune validate {path}   every problem of job, data and model, each with a cure",
        f"#   finetune plan {path}       every value that would be used, and why",
        f"#   finetune run {path}        prepare, train, export; Ctrl-C saves, the same command goes on",
        "apiVersion: finetune.dev/v1alpha1",
        "kind: FineTuneJob",
        "metadata:",
        f"  name: {_scalar(_name(data))}",
        "spec:",
        f"  task: {proposal.task}{f'  # this model can also be trained for {others}' if others else ''}",
        "  model:",
        f"    {kind}: {_scalar(place)}",
        "  dataset:",
        f"    train: {_scalar(data)}{f'  # {proposal.about}' if proposal.about else ''}",
        f"    columns: {columns}  # part: column of the file"
        if proposal.columns
        else "    # columns: {text: body, label: category}  # part: column, where columns have other names",
        f"    eval: {{split: {share}}}  # held out to measure what was learnt; or the URI of a file"
        if share
        else "    # eval: {split: 0.05}  # rows held out to measure what was learnt; or the URI of a file",
        "    # maxLength: 1024  # tokens at which rows are cut; left out, it follows from data and model",
        "    # onInvalid: Skip  # go on without broken rows, if they are few",
        "  method:",
        f"    type: {method}  # lora: a small adapter; qlora: the same on 4-bit weights; full: all weights",
        f"{rank}# lora: {{r: 16, lora_alpha: 32}}",
        "  # training:  # names of transformers' TrainingArguments; what is left out is planned, and the plan says why",
        "  #   learning_rate: 2e-4",
        "  #   num_train_epochs: 3",
        *(_PREFERENCE if spec_of(proposal.task).prefers else ()),
        "  # resourcesPerNode: {limits: {nvidia.com/gpu: 1}}  # GPUs and memory; left out, a CPU trains",
        "  # nodes: 1",
        "  storage:",
        "    uri: file://finetune-storage  # everything is kept below it; on a cluster s3://bucket/prefix",
        "  # dryRun: true  # stop after the plan",
    ]
    return "\n".join(lines) + "\n"


def _share(rows: int) -> float | None:
    """Return the share of rows to hold out: at least about a dozen rows, at most what comparing checkpoints needs."""
    steps = ((2000, 0.05), (200, 0.1), (40, 0.2))
    return next((share for least, share in steps if rows >= least), None)


def _name(data: str) -> str:
    """Return a job's name: the most specific part of the data's name."""
    parts = [re.sub(r"\.[a-z0-9.]+$", "", part.lower()) for part in unquote(data).partition("://")[2].split("/")]
    words = [re.sub(r"[^a-z0-9]+", "-", part).strip("-") for part in reversed(parts)]
    chosen = next((word for word in words if word and word not in PLAIN_NAMES), "my-model")
    return chosen[:MAX_NAME_LENGTH].strip("-")


def _scalar(value: str) -> str:
    """Return a value as YAML that both 1.1 and 1.2 readers read as this text, also within braces."""
    plain = re.fullmatch(r"[A-Za-z0-9_./:%@+=*-]*[A-Za-z0-9_/%*]", value)
    written = yaml12.dump({"x": value}).removeprefix("x: ").rstrip("\n")
    return written if plain else json.dumps(value, ensure_ascii=False)


def _model(given: str) -> dict[str, str]:
    """Return `spec.model` for a model's name, folder or URI."""
    if "://" in given:
        return {"uri": given}
    path = Path(given).expanduser()
    if path.is_dir() or given.startswith(("/", ".", "~")):
        return {"uri": _file_uri(path)}
    return {"name": given}


def _data(given: str) -> str:
    """Return `spec.dataset.train` for a URI, a path, or the name of a data set on the hub."""
    if "://" in given:
        return given
    path = Path(given).expanduser()
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", given) and not path.exists() and not path.suffix
    return f"hf://datasets/{given}" if on_hub else _file_uri(path)


def _file_uri(path: Path) -> str:
    return "file://" + re.sub(r"[\s%]", lambda found: quote(found[0]), str(path))


def _asked(console: Console, given: str | None, option: str, question: str) -> str:
    """Return the value of an option, or ask for it."""
    if given:
        return given
    if answer := _answer(console, f"{question}: "):
        return answer
    message, cure = (
        "is missing, and there is no terminal to ask on",
        "give this option; `finetune init --help` shows how",
    )
    raise SpecError(Problem(code="MissingOption", field=option, message=message, cure=cure))


def _asked_or(console: Console, question: str, default: str) -> str:
    return _answer(console, f"{question} [{default}]: ") or default


def _answer(console: Console, question: str) -> str:
    """Return the typed line; empty without a terminal."""
    if not sys.stdin.isatty():
        return ""
    try:
        return console.input(question, markup=False).strip()
    except EOFError:
        raise KeyboardInterrupt from None


def _may_write(console: Console, path: Path) -> None:
    """Raise SpecError if the file exists and the user does not agree to overwrite it."""
    if not path.is_file():
        return
    if _answer(console, f"{path} exists already; overwrite it? [y/N]: ").lower() in ("y", "yes"):
        return
    message, cure = f"{path} exists already and was not changed", "name another file with --output, or remove this file"
    raise SpecError(Problem(code="FileExists", field="--output", message=message, cure=cure))
