"""docs/architectures.json: what the probe says of architectures, each with its tasks, methods and ZeRO stages; and
docs/architectures.md, made of it.

The question is that of a job with a model of the sizes that the architecture's configuration has by default. A run goes
on where it was stopped: what is known is not asked again, unless the versions have changed.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from finetune_api.messages import MethodType, Task
from finetune_trainer.model.families import family_of, is_proven
from finetune_trainer.prepare.plan.experts import mixture_of, mixture_rules
from finetune_trainer.probe.question import ProbeAnswer, ProbeQuestion, ProbeStage
from tests.families.support import DOCS, PASSED, machine, versions
from tests.support.models.configurations import ARCHITECTURES, config_of

RESULTS, PAGE = DOCS / "architectures.json", DOCS / "architectures.md"
METHODS = (MethodType.LORA, MethodType.FULL)
ASKED = (Task.CAUSAL_LM, Task.CLASSIFICATION, Task.SEQ2SEQ, Task.MASKED_LM)
STAGES = (2, 3)
SECONDS = 600  # for one question; a hang is an answer too
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}  # as planned without experts
HEAD = """# Architectures, as the probe sees them

Made by `python -m tests.families` from `architectures.json`, which `python -m tests.families architectures` writes; do
not edit.

An architecture has one of three levels:

* **Proven**: tests train it with all of its tasks, methods and ZeRO stages. [What trains](support.md) shows each.
* **Probed**: prepare trains a tiny model of the same code before the job. The model reads its longest row and takes two
  steps under DeepSpeed, with the job's task, method and ZeRO stage. Then it is saved, transformers and PEFT alone load
  it, and the losses are compared. Prepare keeps the answer for later jobs.
* **Refused**: the tiny model fails. The job ends in prepare with `ArchitectureNotSupported`, the place and the cure.

An architecture that is missing here is probed as well, if transformers has a model of it for the task.

"""


@dataclass(frozen=True)
class Probe:
    """An architecture with a task, a method and a ZeRO stage."""

    model_type: str
    task: Task
    method: MethodType
    stage: int

    def __str__(self) -> str:
        return f"{self.model_type}-{self.task}-{self.method}-zero{self.stage}"

    def question(self) -> ProbeQuestion:
        """What prepare asks for a job with it."""
        config = config_of(self.model_type)
        lora = {**LORA, **_rules_of_experts(config, self.task)} if self.method is MethodType.LORA else {}
        return ProbeQuestion(config=config, task=self.task, method=self.method, lora=lora, zero_stage=self.stage)


def _rules_of_experts(config: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Return what the plan chooses for the adapter of a mixture of experts."""
    mixture = mixture_of(config, task)
    return {name: value for name, (value, _) in mixture_rules(mixture, {}).items()} if mixture else {}


def probes() -> Iterator[Probe]:
    """All of them; ZeRO-3 last, as most of what fails does so in any stage."""
    for stage in STAGES:
        for model_type in ARCHITECTURES:
            for task in () if is_proven(model_type) else probed_tasks(model_type):
                for method in METHODS:
                    yield Probe(model_type, task, method, stage)


def probed_tasks(model_type: str) -> list[Task]:
    """Return the tasks of an architecture that are asked: those by which it reads and writes tokens, and labels."""
    return [task for task in family_of(model_type).tasks if task in ASKED]


def run(wanted: Callable[[Probe], bool], say: Callable[[str], None] = print) -> None:
    """Ask what is not known with these versions; each answer is kept at once, and the page with it."""
    known = load()
    if known["versions"] != versions():
        known = {"versions": versions(), "machine": machine(), "probes": {}}
    left = [probe for probe in probes() if wanted(probe) and str(probe) not in known["probes"]]
    say(f"{len(left)} questions")
    import finetune_trainer.probe.attempt  # noqa: F401 - once, for all the processes that are forked

    for probe in left:
        known["probes"][str(probe)] = as_record(answer_of(probe.question()))
        say(f"{probe}: {known['probes'][str(probe)]}")
        RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page(known))


def answer_of(question: ProbeQuestion) -> ProbeAnswer:
    """Return the answer of a forked process, as prepare gets it from a new one."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(question, theirs))
    process.start()
    theirs.close()
    stage = ProbeStage.SHRINK
    try:
        while ours.poll(SECONDS):
            said = ours.recv()
            if isinstance(said, ProbeAnswer):
                return said
            stage = said
        return ProbeAnswer(failed=stage, reason=f"no answer within {SECONDS} s")
    except EOFError:
        process.join()
        return ProbeAnswer(failed=stage, reason=f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _answer(question: ProbeQuestion, pipe: Any) -> None:
    from finetune_trainer.probe.attempt import answer

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    pipe.send(answer(question, pipe.send))
    pipe.close()
    os._exit(0)


def as_record(answer: ProbeAnswer) -> str:
    """Return an answer as it is kept."""
    if answer.failed is not None:
        return f"{answer.failed}: {answer.reason}"
    found = [f"{answer.reserved} positions hold no token"] if answer.reserved else []
    found += [f"text does not reach {', '.join(answer.unreached)}"] if answer.unreached else []
    return "; ".join([PASSED, *found])


def load() -> dict[str, Any]:
    """What is known."""
    if not RESULTS.exists():
        return {"versions": {}, "machine": "", "probes": {}}
    known: dict[str, Any] = json.loads(RESULTS.read_text())
    return known


def page(known: Mapping[str, Any]) -> str:
    """docs/architectures.md."""
    records: Mapping[str, str] = known["probes"]
    asked = [probe for probe in probes() if str(probe) in records]
    passed = sum(records[str(probe)].startswith(PASSED) for probe in asked)
    seen = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    total = sum(1 for _ in probes())
    parts = [HEAD, f"{len(asked)} of {total} questions were asked, and {passed} passed, with {seen}"]
    parts.append(f" ({known['machine']}).\n\n" if known["machine"] else ".\n\n")
    columns = [(method, stage) for method in METHODS for stage in STAGES]
    parts.append("| architecture | level | task | " + " | ".join(f"{one}, ZeRO-{stage}" for one, stage in columns))
    parts.append(" |\n|---|---|---|" + ":-:|" * len(columns) + "\n")
    for model_type in sorted(ARCHITECTURES):
        if is_proven(model_type):
            parts.append(f"| {model_type} | proven | [what trains](support.md) | | | | |\n")
            continue
        if not family_of(model_type).tasks:
            parts.append(f"| {model_type} | refused | no model of text alone | | | | |\n")
        for task in probed_tasks(model_type):
            row = [records.get(str(Probe(model_type, task, method, stage)), "") for method, stage in columns]
            level = _level(row)
            parts.append(f"| {model_type} | {level} | {task} | " + " | ".join(_mark(one) for one in row) + " |\n")
    refused = [probe for probe in asked if not records[str(probe)].startswith(PASSED)]
    if refused:
        parts.append("\n## What is refused\n\n" + "".join(_sentences(refused, records)))
    return "".join(parts)


def _sentences(refused: Iterable[Probe], records: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each architecture, task and sentence, with the methods and stages that it holds for."""

    def key(probe: Probe) -> tuple[str, str, str]:
        return probe.model_type, str(probe.task), records[str(probe)]

    for (model_type, task, sentence), group in groupby(sorted(refused, key=key), key=key):
        cells = ", ".join(f"{probe.method} ZeRO-{probe.stage}" for probe in group)
        yield f"* {model_type}, {task} ({cells}): `{sentence.replace('`', '')[:240]}`\n"


def _level(row: Iterable[str]) -> str:
    known = [one for one in row if one]
    if not known:
        return "not asked"
    passed = [one.startswith(PASSED) for one in known]
    return "probed" if all(passed) else "refused" if not any(passed) else "probed, in part"


def _mark(record: str) -> str:
    return "" if not record else "yes" if record.startswith(PASSED) else "refused"


def chosen(patterns: Iterable[str]) -> Callable[[Probe], bool]:
    """Probes whose name holds all of some words."""
    words = list(patterns)
    return lambda probe: all(word in str(probe) for word in words)


def write_page(path: Path = PAGE) -> None:
    """Write the page of what is known."""
    path.write_text(page(load()))
