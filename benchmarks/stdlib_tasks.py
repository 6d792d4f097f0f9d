"""Three real tasks from the standard library's sources: predict a docstring's package, its summary line, a function's
end.

Modules are split, not rows, so scored rows come from files that neither pre-training nor training has used. Sources are
parsed, never imported; the same interpreter gives the same rows.
"""

import ast
import hashlib
import json
import re
import sysconfig
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scripts.quickstart.data import parsed

VERSION = 1  # of the generated rows
PRETRAINED, TRAINED, EVALUATED = range(5), range(5, 8), range(8, 10)  # tenths of the modules
TRAIN_ROWS, EVAL_ROWS = 320, 100
LABEL_ROWS, LABEL_EVAL_ROWS = 30, 24  # rows of one package
LABEL_MODULES = 5  # a package of fewer files cannot be split
FUNCTION_CHARACTERS = 150, 450
Row = dict[str, str]


@dataclass(frozen=True)
class Module:
    """One source file: its top-level package, its tenth of the split, its text and its tree."""

    package: str
    tenth: int
    text: str
    tree: ast.Module

    def documented(self) -> Iterator[str]:
        """Yield its docstrings."""
        for node in ast.walk(self.tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and (text := ast.get_docstring(node)):
                yield text

    def functions(self) -> Iterator[str]:
        """Yield the sources of its functions, without indentation."""
        lines = self.text.splitlines()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))


@cache
def modules() -> tuple[Module, ...]:
    """Return every module of this interpreter's standard library that can be parsed."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if "site-packages" in relative.parts:
            continue
        tree = parsed(path)
        if tree.body:
            package = relative.parts[0].removesuffix(".py")
            text = path.read_text("utf-8", errors="replace")
            found.append(Module(package, number(relative.as_posix()) % 10, text, tree))
    return tuple(found)


def number(text: str) -> int:
    """Return a number that depends on a text alone."""
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12], 16)


def packages() -> tuple[list[Row], list[Row]]:
    """Return docstrings with their packages, for an encoder that was not trained on them."""
    files: Counter[str] = Counter(module.package for module in modules() if any(module.documented()))
    texts: dict[str, set[tuple[str, bool]]] = defaultdict(set)
    for module in modules():
        if files[module.package] >= LABEL_MODULES:
            for text in module.documented():
                line = " ".join(text.split())
                if len(line.split()) >= 6:
                    texts[line].add((module.package, module.tenth in EVALUATED))
    rows: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for text in sorted(texts, key=number):
        if (
            len(texts[text]) == 1
        ):  # a text of two packages has no single label, and a text of two modules may be in both splits
            [(package, held)] = texts[text]
            rows[package, held].append({"text": text, "label": package})
    labels = sorted(package for package, held in rows if held and _enough(rows, package))
    train = [row for label in labels for row in rows[label, False][:LABEL_ROWS]]
    held_out = [row for label in labels for row in rows[label, True][:LABEL_EVAL_ROWS]]
    return sorted(train, key=lambda row: number(row["text"])), held_out


def _enough(rows: dict[tuple[str, bool], list[Row]], package: str) -> bool:
    return len(rows[package, False]) >= LABEL_ROWS // 2 and len(rows[package, True]) >= LABEL_EVAL_ROWS // 2


def summaries() -> tuple[list[Row], list[Row]]:
    """Return the body of each docstring with its first line."""

    def pairs(module: Module) -> Iterator[Row]:
        for text in module.documented():
            first, _, rest = text.partition("\n\n")
            first, rest = " ".join(first.split()), " ".join(rest.split())
            if 3 <= len(first.split()) <= 25 and len(rest.split()) >= 12:
                yield {"prompt": f"summarize: {rest[:600]}", "completion": first}

    return _parted(pairs)


def continuations() -> tuple[list[Row], list[Row]]:
    """Return the first half of the lines of each function with the second half."""
    shortest, longest = FUNCTION_CHARACTERS

    def pairs(module: Module) -> Iterator[Row]:
        for text in module.functions():
            lines = text.splitlines(keepends=True)
            if shortest <= len(text) <= longest and len(lines) >= 6:
                half = len(lines) // 2
                yield {"prompt": "".join(lines[:half]), "completion": "".join(lines[half:])}

    return _parted(pairs)


def _parted(pairs: Any) -> tuple[list[Row], list[Row]]:
    splits = []
    seen: set[str] = set()
    for tenths, most in ((PRETRAINED, 0), (EVALUATED, EVAL_ROWS), (TRAINED, TRAIN_ROWS)):
        rows = {row["prompt"]: row for module in modules() if module.tenth in tenths for row in pairs(module)}
        fresh = sorted((prompt for prompt in rows if prompt not in seen), key=number)
        seen.update(fresh)
        splits.append([rows[prompt] for prompt in fresh[:most]])
    _, held_out, train = splits
    return train, held_out


def prose() -> list[str]:
    """Return docstrings of the modules for pre-training, each once."""
    texts = (text for module in modules() if module.tenth in PRETRAINED for text in module.documented())
    return list(dict.fromkeys(re.sub(r"\s+", " ", text) for text in texts))


def code() -> list[str]:
    """Return functions of the modules for pre-training, each once."""
    texts = (text for module in modules() if module.tenth in PRETRAINED for text in module.functions())
    return list(dict.fromkeys(text for text in texts if len(text) >= FUNCTION_CHARACTERS[0]))


TASKS = {"classification": packages, "seq2seq": summaries, "causal-lm": continuations}


def write(task: str, folder: Path) -> None:
    """Write train.jsonl and eval.jsonl of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "eval"), TASKS[task](), strict=True):
        _lines(folder / f"{name}.jsonl", rows)


def _lines(path: Path, rows: Iterable[Row]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    partial.replace(path)
