"""What to do about a file whose columns fit no shape: a proposal that keeps all that a row carries, or the reason."""

from collections.abc import Mapping
from typing import Any

from finetune_api.messages import Task
from finetune_api.tasks import ALPACA, CHOICE, JUDGED, PAIR, TAGGED_WORDS, TEXT_PAIRS, TEXTS, spec_of
from finetune_trainer.prepare.data.column_names import CONTEXT, LIKELY, PAIR_LABELS
from finetune_trainer.prepare.data.formats import DataFile, Format

Parts = tuple[str, ...]
WITH_SYSTEM = (ALPACA, PAIR, ("messages",), CHOICE, JUDGED)


def rows_code(task: Task, row: Mapping[str, Any]) -> str:
    """Return the code of rows like this one: of data that no task learns, or of a column that is called otherwise."""
    if not spec_of(task).labels_words and _word_labels(row) is not None:
        return "WordLabels"
    return "MissingColumn"


def cure(file: DataFile, task: Task, row: Mapping[str, Any]) -> str:
    """Say what to do about rows like this one."""
    if {"chosen", "rejected"} <= row.keys() and not spec_of(task).prefers:
        return "these are preferences: set spec.task to preference, or keep the chosen answers as prompt and completion"
    if {"anchor", "positive"} <= row.keys() and not spec_of(task).compares:
        return "these are texts that belong together: set spec.task to embedding"
    if file.format in (Format.CSV, Format.TSV) and _is_no_header(list(row)):
        return "line 1 seems to be a row, not a header: begin the file with a line of column names"
    if not spec_of(task).labels_words and (tags := _word_labels(row)) is not None:
        return f"{tags!r} labels each word of a row: set spec.task to token-classification"
    nested = next((name for name, value in row.items() if _is_rows(value) and not _is_chat(value)), None)
    if nested is not None:
        return f"the rows seem to lie in {nested!r}: write that list as the file, or its items as JSON lines"
    if spec_of(task).labelled and "messages" in row:
        return "these are conversations: set spec.task to causal-lm, or give each row a text and a label"
    if (columns := _best(task, row)) is not None:
        mapping = ", ".join(f"{part}: {column}" for part, column in columns.items())
        return f"say which column is which; perhaps spec.dataset.columns: {{{mapping}}}{_left_out(row, columns)}"
    if (paths := _paths(row)) and not spec_of(task).labelled:
        mapping = ", ".join(f"{part}: {path}" for part, path in zip(_parts(task), paths, strict=False))
        return f"a column may be named by its path; perhaps spec.dataset.columns: {{{mapping}}}"
    return f"correct the names, or say in spec.dataset.columns which column is which: {spec_of(task).example}"


def _best(task: Task, row: Mapping[str, Any]) -> dict[str, str] | None:
    if spec_of(task).labelled and (columns := _two_texts(row)) is not None:
        return columns
    for parts in spec_of(task).proposals:
        if (columns := _proposal(parts, row)) is not None:
            return columns
    return None


def _proposal(parts: Parts, row: Mapping[str, Any]) -> dict[str, str] | None:
    """Return a likely column for each part; also for a system message and for reasoning, if there are any."""
    by_name = {name.strip().lower(): name for name in reversed(list(row))}
    columns: dict[str, str] = {}
    optional = (*(("system",) if parts in WITH_SYSTEM else ()), *(("reasoning",) if parts == PAIR else ()))
    for part in (*parts, *optional):
        names = [by_name[name] for name in (part, *LIKELY[part]) if name in by_name]
        if parts == ALPACA and part == "input":
            names = [by_name[name] for name in CONTEXT if name in by_name]
        free = [name for name in names if name not in columns.values()]
        if free:
            columns[part] = free[0]
        elif part not in optional:
            return None
    return columns


def _left_out(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    left = [repr(name) for name in row if name not in columns.values()]
    return f" (not read then: {', '.join(left[:8])}{', ...' if len(left) > 8 else ''})" if left else ""


def _parts(task: Task) -> Parts:
    if spec_of(task).compares:
        return TEXTS
    return ("text",) if spec_of(task).hides_tokens else PAIR


def _paths(row: Mapping[str, Any]) -> list[str]:
    """Return paths to texts within the first column that holds some: `translation.de`."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            inner = [f"{name}.{key}" for key, text in value.items() if isinstance(text, str)]
            if inner:
                return inner
    return []


def _word_labels(row: Mapping[str, Any]) -> str | None:
    both = [(row.get(words), tags) for words, tags in TAGGED_WORDS.values() if isinstance(row.get(words), list)]
    return next((t for words, t in both if isinstance(row.get(t), list) and len(row[t]) == len(words or ())), None)


def _two_texts(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the columns of two texts with a label of another name."""
    both = next((pair for pair in TEXT_PAIRS.values() if all(isinstance(row.get(name), str) for name in pair)), None)
    label = next((name for name in ("label", *PAIR_LABELS, *LIKELY["label"]) if name in row), None)
    return None if both is None or label is None else {"text": both[0], "text_pair": both[1], "label": label}


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value[:10])


def _is_chat(rows: list[Mapping[str, Any]]) -> bool:
    return all("role" in row or "from" in row for row in rows[:10])


def _is_no_header(names: list[str]) -> bool:
    """Return whether names look like values: long, or numbers."""
    return any(len(name) > 60 or name.count(" ") > 4 or name.strip("-").replace(".", "").isdigit() for name in names)
