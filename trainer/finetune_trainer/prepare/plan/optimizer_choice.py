"""The optimizer of a run, with its arguments, checked against machine, stage and method before data is read. Pure."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.errors import Problem, SpecError
from finetune_api.optimizers import DEFAULT, OPTIMIZERS, Argument, OptimizerSpec, state_bytes
from finetune_api.plan import PlannedOptimizer
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem
from finetune_trainer.prepare.plan.machine import Machine

FIELD = "spec.training.optim"
ARGUMENTS = "spec.training.optim_args"
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class ChosenOptimizer:
    """The optimizer of a run.

    Attributes:
        arguments: what its class gets beside learning rate and weight decay.
        grouped: whether biases and norms are a group of their own, without weight decay.
    """

    name: str = DEFAULT
    arguments: Mapping[str, Any] = field(default_factory=dict)
    grouped: bool = False

    @property
    def spec(self) -> OptimizerSpec:
        """Its record."""
        return OPTIMIZERS[self.name]

    @property
    def state_bytes(self) -> float:
        """Bytes of its states per trained parameter, without the float32 copy of the weights."""
        return state_bytes(self.name, self.arguments)

    @property
    def planned(self) -> PlannedOptimizer | None:
        """The plan's part; None for the AdamW of DeepSpeed's configuration. Muon stands in both: DeepSpeed makes it,
        and the worker corrects it."""
        if self.spec.deepspeed:
            return PlannedOptimizer(name=self.name)
        if self.name == DEFAULT and not self.grouped:
            return None
        return PlannedOptimizer(name=self.name, arguments=dict(self.arguments))


def optimizer_choice(job: FineTuneJob, log: ChoiceLog, machine: Machine) -> ChosenOptimizer:
    """Return the optimizer that the job names, or AdamW; note it.

    Raises:
        SpecError: the machine, the image or another field excludes it, or an argument is not one of its own.
    """
    given = log.given
    name = given.get("optim", DEFAULT)
    spec = OPTIMIZERS[name]
    problems = [*_excluded(job, log, machine, spec), *_unread(given, spec)]
    arguments, wrong = _read(str(given.get("optim_args", "")), spec)
    problems += [*wrong, *_unfitting(arguments)]
    if problems:
        raise SpecError(problems)
    if "optim" in given:
        size = state_bytes(name, arguments)
        log.note(FIELD, name, f"given: {spec.states}, {size:.4g} bytes a trained parameter", True)
    grouped = bool(given.get("weight_decay")) and job.spec.deepspeed.config is None
    return ChosenOptimizer(name, _adam(given, spec) | arguments, grouped)


def rated(chosen: ChosenOptimizer, rate: float, reason: str) -> tuple[float, str]:
    """Return the learning rate of an optimizer from that of AdamW, and the source of both."""
    factor = chosen.spec.rate
    if factor is None or chosen.spec.rate_source == OPTIMIZERS[DEFAULT].rate_source:
        return rate, reason
    return float(f"{rate * factor:.1e}"), f"{chosen.spec.title}: {chosen.spec.rate_source}; AdamW's is {reason}"


def _excluded(job: FineTuneJob, log: ChoiceLog, machine: Machine, spec: OptimizerSpec) -> Iterator[Problem]:
    name, config = log.given.get("optim"), job.spec.deepspeed.config
    if name is None:
        return
    if config is not None and "optimizer" in config:
        message = f"is {name}, and spec.deepspeed.config.optimizer names an optimizer too"
        yield problem("Conflict", FIELD, message, "leave one of the two out")
    elif config is not None and spec.deepspeed:
        message = f"is {name}, which DeepSpeed makes, and spec.deepspeed.config has no optimizer"
        yield problem("NeedsOther", FIELD, message, f'add "optimizer": {{"type": "{spec.deepspeed}"}} to it')
    if spec.cuda and machine.device == "cpu":
        same = name.removeprefix("paged_").replace("adamw_8bit", "adamw_bnb_8bit").replace("adamw_32bit", DEFAULT)
        message = f"is {name}, and this run has no GPU: {spec.cuda}"
        yield problem("NotOnCPU", FIELD, message, f"use {same}, or ask for GPUs")
    schedule = log.given.get("lr_scheduler_type", spec.scheduler)
    if spec.scheduler and schedule not in (spec.scheduler, "constant"):
        message = f"is {schedule}, and {name} averages the weights of all steps in place of a decaying rate"
        cure = f"leave it out, or set it to {spec.scheduler}"
        yield problem("Conflict", "spec.training.lr_scheduler_type", message, cure)
    if spec.rate is None and "learning_rate" not in log.given:
        message = f"is missing: an update of {name} is as large as its gradient, so no rate fits every model"
        yield problem("NeedsOther", "spec.training.learning_rate", message, "set it, such as 0.01, or use adamw_torch")


def _unread(given: Mapping[str, Any], spec: OptimizerSpec) -> Iterator[Problem]:
    """Yield problems of Adam's values that the optimizer does not read."""
    for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if name in given and name not in spec.adam:
            message = f"is {given[name]}, and {given['optim']} has no such value"
            yield problem("Conflict", f"spec.training.{name}", message, "leave it out, or use adamw_torch")
    if spec.divides and given.get("adam_beta1") == 0:
        message = f"is 0, and {given['optim']} needs a number above 0: {spec.divides}"
        yield problem("OutOfRange", "spec.training.adam_beta1", message, "leave it out, or set it to such as 0.9")


def _adam(given: Mapping[str, Any], spec: OptimizerSpec) -> dict[str, Any]:
    """Return the arguments that stand in fields of their own."""
    made: dict[str, Any] = {}
    if "adam_beta1" in spec.adam:
        first, second = spec.betas or (0.9, 0.999)
        made["betas"] = [given.get("adam_beta1", first), given.get("adam_beta2", second)]
    if "adam_epsilon" in spec.adam:
        made["eps"] = given.get("adam_epsilon", 1e-8)
    return made


# ---------------------------------------------------------------- optim_args


def _read(text: str, spec: OptimizerSpec) -> tuple[dict[str, Any], list[Problem]]:
    """Return the arguments in a text such as `momentum=0.9,nesterov=true`, and all that is wrong with it."""
    found: dict[str, Any] = {}
    problems = []
    for part in (one.strip() for one in text.split(",") if one.strip()):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        known = spec.arguments.get(name)
        if not equals or not value:
            problems.append(_wrong(f"has `{part}`, which is not `name=value`", "write such as momentum=0.9"))
        elif known is None:
            problems.append(_wrong(f"has `{name}`, which {spec.title} does not take", _instead(name, spec)))
        elif name in found:
            problems.append(_wrong(f"has `{name}` twice", "give it once"))
        elif (read := _value(value, known)) is None:
            problems.append(_wrong(f"has {name}={value}, which is not {_kind(known)}", "correct the value"))
        elif known.kind is not bool and not known.values.hold(read):
            problems.append(_wrong(f"has {name}={value}, and it must be {known.values.rule}", "correct the value"))
        else:
            found[name] = read
    return found, problems


def _unfitting(arguments: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what torch's SGD refuses."""
    if arguments.get("nesterov") and (not arguments.get("momentum") or arguments.get("dampening")):
        message = "has nesterov=true, which needs a momentum above 0 and no dampening"
        yield _wrong(message, "add such as momentum=0.9 and leave dampening out, or leave nesterov out")


def _value(text: str, argument: Argument) -> Any:
    if argument.kind is bool:
        return TRUTH.get(text.lower())
    try:
        return argument.kind(text)
    except ValueError:
        return None


def _kind(argument: Argument) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}[argument.kind]


def _instead(name: str, spec: OptimizerSpec) -> str:
    if near := difflib.get_close_matches(name, spec.arguments, n=1):
        return f"did you mean {near[0]}?"
    return f"its arguments are {', '.join(spec.arguments)}" if spec.arguments else "leave it out: it takes none"


def _wrong(message: str, cure: str) -> Problem:
    return problem("InvalidValue", ARGUMENTS, message, cure)
