"""Reads a FineTuneJob and reports every problem at once. Messages of pydantic never leave this file."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_api.errors import Problem, SpecError
from finetune_api.lenient import without
from finetune_api.v1alpha1.job import FineTuneJob
from finetune_api.v1alpha1.names import closest, task_elsewhere, unknown_field
from finetune_api.v1alpha1.patterns import meaning
from finetune_api.v1alpha1.rules import RULES
from finetune_api.v1alpha1.spec_base import shown
from finetune_api.v1alpha1.supported import unsupported_in
from finetune_api.v1alpha1.tree import Path, children, dotted, model_at

Lines = Callable[[Path], int | None]


def parse_job(data: Any, lines: Lines | None = None, file: str | None = None) -> FineTuneJob:
    """Return the job in `data`, which is parsed YAML or JSON. `status` is ignored: the operator writes it.

    Args:
        data: the object, by its YAML names.
        lines: returns the line of a path in the file of the job, if there is a file.
        file: name of that file.

    Raises:
        SpecError: every problem at once: unknown and missing fields, values out of range, broken rules between fields,
            fields that are not supported yet.
    """
    where = _Where(lines, file)
    if not isinstance(data, Mapping):
        raise SpecError(
            where.problem((), "WrongType", f"is {shown(data)}; must be an object", "start with `apiVersion:`")
        )
    written = {key: value for key, value in data.items() if key != "status"}
    problems: list[Problem] = []
    job: FineTuneJob | None = None
    try:
        # Validated as JSON, because strict types are then those of the API server.
        job = FineTuneJob.model_validate_json(json.dumps(written, default=str))
    except ValidationError as error:
        problems += [where.problem(_path(one), *_translated(one)) for one in error.errors(include_url=False)]
    problems += _broken_rules(written, where)
    malformed = {problem.field for problem in problems}
    for problem in unsupported_in(written):
        if problem.field not in malformed:
            problems.append(where.at(problem, tuple(problem.field.split("."))))
    if problems or job is None:
        raise SpecError(sorted(problems, key=lambda problem: problem.lines))
    return job


def reread_job(data: Any) -> FineTuneJob | None:
    """Return the job in `data`, which was accepted before, perhaps by another version of this software.

    Unknown fields are skipped. Rules between fields, and support for them, were checked when the job was accepted.
    Return None where a value itself cannot be read.
    """
    while True:
        try:
            return FineTuneJob.model_validate_json(json.dumps({**data, "status": None}, default=str))
        except ValidationError as error:
            problems = error.errors(include_url=False)
            if any(one["type"] != "extra_forbidden" for one in problems):
                return None
            data = without(data, (_path(one) for one in problems))


class _Where:
    """Adds file and line to problems."""

    def __init__(self, lines: Lines | None, file: str | None) -> None:
        self._lines = lines
        self._file = file

    def problem(self, path: Path, code: str, message: str, cure: str) -> Problem:
        return self.at(Problem(code=code, field=dotted(path), message=message, cure=cure), path)

    def at(self, problem: Problem, path: Path) -> Problem:
        line = self._lines(path) if self._lines else None
        return problem.model_copy(update={"file": self._file, "lines": () if line is None else (line,)})


def _broken_rules(data: Mapping[str, Any], where: _Where) -> list[Problem]:
    problems = []
    for rule in RULES:
        given: Any = data
        for part in rule.at:
            given = given.get(part) if isinstance(given, Mapping) else None
        if isinstance(given, Mapping) and (message := rule.broken(given)):
            path = (*rule.at, *rule.field.split(".")) if rule.field else rule.at
            problems.append(where.problem(path, rule.code, message, rule.cure))
    return problems


def _path(error: ErrorDetails) -> Path:
    """Return the path of an error, without the parts that pydantic adds for unions and map keys."""
    return tuple(part for part in error["loc"] if not (isinstance(part, str) and part.startswith(("<", "[key]"))))


_WRONG_TYPE = {
    "string_type": ("a string", "write it in quotes"),
    "int_type": ("a whole number", "write it without quotes and without a fraction"),
    "int_parsing": ("a whole number", "write it without quotes and without a fraction"),
    "int_from_float": ("a whole number", "write it without a fraction"),
    "float_type": ("a number", "write it without quotes, such as 0.5 or 2e-4"),
    "float_parsing": ("a number", "write it without quotes, such as 0.5 or 2e-4"),
    "finite_number": ("a finite number", "write a number such as 0.5 or 2e-4"),
    "bool_type": ("true or false", "write true or false without quotes"),
    "bool_parsing": ("true or false", "write true or false without quotes"),
    "list_type": ("a list", "write one item per line, each after a dash"),
    "dict_type": ("an object", "write `key: value` lines below it"),
    "model_type": ("an object", "write `key: value` lines below it"),
    "model_attributes_type": ("an object", "write `key: value` lines below it"),
}

_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _translated(error: ErrorDetails) -> tuple[str, str, str]:
    """Return code, message and cure for an error of pydantic."""
    kind, context, path = error["type"], error.get("ctx", {}), _path(error)
    seen = shown(error["input"])
    if kind == "finetune":
        return context["code"], context["message"], context["cure"]
    if kind == "extra_forbidden":
        return unknown_field(path)
    if kind == "missing":
        return "MissingField", "is missing; it is required", _how_to_add(path)
    if kind in _WRONG_TYPE:
        wanted, cure = _WRONG_TYPE[kind]
        return "WrongType", f"is {seen}; must be {wanted}", cure
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = _plain(context[key])
        return "OutOfRange", f"is {seen}; must be {words} {bound}", f"write a number {words} {bound}"
    if kind in ("enum", "literal_error"):
        return _choose(error["input"], path, context["expected"])
    if kind == "string_pattern_mismatch":
        rule, cure = meaning(context["pattern"])
        return "InvalidValue", f"is {seen}; must be {rule}", cure
    if kind in ("string_too_short", "too_short"):
        return "TooShort", f"is {seen}; must not be empty", "write a value, or leave the field out"
    if kind in ("string_too_long", "too_long"):
        limit = context["max_length"]
        noun = "characters" if kind == "string_too_long" else "entries"
        return "TooLong", f"is {seen}; must have at most {limit} {noun}", "shorten it"
    return "InvalidValue", f"is {seen}; it is not a valid value here", _how_to_add(path)


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _choose(value: Any, path: Path, expected: str) -> tuple[str, str, str]:
    choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
    if path == ("kind",) or path == ("apiVersion",):
        return "InvalidValue", f"is {shown(value)}; must be {choices[0]}", f"write {path[0]}: {choices[0]}"
    if path == ("spec", "task") and (cure := task_elsewhere(str(value))) is not None:
        return "InvalidValue", f"is {shown(value)}; must be one of {', '.join(choices)}", cure
    close = closest(str(value), choices)
    cure = f"did you mean `{close}`?" if close else "write one of them"
    return "InvalidValue", f"is {shown(value)}; must be one of {', '.join(choices)}", cure


def _how_to_add(path: Path) -> str:
    model = model_at(path[:-1])
    branch = children(model).get(str(path[-1])) if model and path else None
    about = (branch.info.description if branch else None) or ""
    if not about:
        return "see the reference of the API"
    begins_with_word = about[1:2].islower()  # an abbreviation such as API keeps its capitals
    return f"write `{path[-1]}:` - {about[0].lower() if begins_with_word else about[0]}{about[1:].rstrip('.')}"
