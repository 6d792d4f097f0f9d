"""Real rows: functions of Python's standard library, and what their docstrings say they do.

Rows that are scored come from other files than rows that are trained. Sources are parsed, never imported.
"""

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.stdlib_tasks import EVALUATED, TRAINED, Module, modules, number

WORDS = range(4, 13)  # of a docstring's first sentence
LONGEST_SIGNATURE = 60  # characters
EVAL_ROWS = 16
CODE = "json/decoder.py"  # code that any model of code has seen
Row = dict[str, str]


def write(folder: Path, rows: int) -> None:
    """Write train.jsonl with some rows, and eval.jsonl with `EVAL_ROWS`."""
    for name, tenths, count in (("train", TRAINED, rows), ("eval", EVALUATED, EVAL_ROWS)):
        found = {row["prompt"]: row for module in modules() if module.tenth in tenths for row in described(module)}
        chosen = [found[prompt] for prompt in sorted(found, key=number)[:count]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")


def described(module: Module) -> Iterator[Row]:
    """Yield the functions of a module that say in a sentence what they do; the library's own tests are left out."""
    for node in ast.walk(module.tree) if module.package != "test" else ():
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            sentence = text.partition("\n\n")[0].strip()
            signature = f"{node.name}({ast.unparse(node.args)})"
            single = "\n" not in sentence and sentence.endswith(".") and len(sentence.split()) in WORDS
            if single and len(signature) <= LONGEST_SIGNATURE and not node.name.startswith(("_", "test")):
                yield {"prompt": f"What does {signature} do?", "completion": sentence}


def code() -> str:
    """Return the beginning of a module of the standard library."""
    return (Path(sysconfig.get_path("stdlib")) / CODE).read_text("utf-8")[:2400]
