"""Which files a uri names: one, those that fit a pattern, or the data files of a folder. Pure: names in, names out.

A folder is not searched below its own level: `data/**/*.jsonl` says that this is meant.
"""

import re
from collections.abc import Iterable
from fnmatch import translate

from finetune_trainer.prepare.data.detect import suffixes_of
from finetune_trainer.prepare.data.formats import Format

WILDCARDS = "*?["
NO_DATA = re.compile(r"^(readme|license|licence|notice|changelog|requirements)\b", re.IGNORECASE)
SAVED = "dataset_dict.json"  # in the folder of several splits that the library datasets has saved
STATE = "state.json"  # in the folder of each
CACHE = re.compile(r"(?:cache|tmp)-?[0-9a-z]+\.arrow")  # what it writes beside the data when rows are mapped
BESIDE_DATA = {"_SUCCESS", "_metadata", "_common_metadata", "dataset_info.json", "dataset_infos.json", STATE, SAVED}
EVALUATION = {"test", "valid", "validation", "val", "eval", "evaluation", "dev", "heldout"}


def is_pattern(path: str) -> bool:
    """Return whether a path has wildcards."""
    return any(char in path for char in WILDCARDS)


def fixed_part(pattern: str) -> str:
    """Return the folder that a pattern cannot leave: `data` of `data/*/x.jsonl`; empty for the root."""
    fixed = []
    for part in pattern.split("/")[:-1]:
        if is_pattern(part):
            break
        fixed.append(part)
    return "/".join(fixed)


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that fit, sorted. `*` stays within a folder, `**` is any number of folders; no hidden ones.

    A pattern whose last part has no dot, such as `folder/*`, says nothing of the files: then only data files are taken.
    """
    parts = [(part, None if part == "**" else re.compile(translate(part))) for part in pattern.split("/")]
    # a key that ends in a slash is a folder's marker in a bucket
    found = sorted(name for name in names if not name.endswith("/") and _fits(name.split("/"), parts))
    return found if "." in pattern.rpartition("/")[2] else data_files(found)


def _fits(names: list[str], parts: list[tuple[str, "re.Pattern[str] | None"]]) -> bool:
    if not parts:
        return not names
    part, expression = parts[0]
    if expression is None:
        hidden = next((index for index, name in enumerate(names) if name.startswith(".")), len(names))
        return any(_fits(names[start:], parts[1:]) for start in range(hidden + 1))
    if not names or (names[0].startswith(".") and not part.startswith(".")):
        return False
    return expression.match(names[0]) is not None and _fits(names[1:], parts[1:])


def data_files(names: Iterable[str]) -> list[str]:
    """Return the data files among these, sorted; files that usually accompany data are left out.

    Files without a suffix of data are taken only where no file has one.
    """
    names = sorted(names)
    saved = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == STATE}
    left = [name for name in names if _may_be_data(name.rpartition("/")[2]) and not _is_cache(name, saved)]
    return [name for name in left if suffixes_of(name)[0] is not None] or left


def _may_be_data(base: str) -> bool:
    return not base.startswith((".", "_")) and base not in BESIDE_DATA and not NO_DATA.match(base)


def _is_cache(name: str, saved: set[str]) -> bool:
    folder, _, base = name.rpartition("/")
    return folder in saved and CACHE.fullmatch(base) is not None


def saved_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the splits of a folder that the library datasets has saved: each is a folder with Arrow files."""
    found: dict[str, list[str]] = {}
    for name in data_files(names):
        split, _, base = name.rpartition("/")
        if split and "/" not in split and base.endswith(".arrow"):
            found.setdefault(split, []).append(name)
    return found


def likely_data(names: Iterable[str]) -> list[str]:
    """Return those names that look like data, sorted, for an error message."""
    shown = (name for name in names if not any(part.startswith(".") for part in name.split("/")))
    return [name for name in data_files(shown) if suffixes_of(name)[0] is not None]


def formats_of(names: Iterable[str]) -> dict[Format, str]:
    """Return the formats that the names show, each with the first such name."""
    found: dict[Format, str] = {}
    for name in names:
        form, _ = suffixes_of(name)
        if form is not None:
            found.setdefault(form, name)
    return found


def splits_among(names: Iterable[str]) -> tuple[str, str] | None:
    """Return a file of training and one of evaluation data, if the names show both."""
    words = {name: set(re.split(r"[^a-z]+", name.lower())) for name in names}
    train = next((name for name, parts in words.items() if parts & {"train", "training"}), None)
    other = next((name for name, parts in words.items() if parts & EVALUATION and "train" not in parts), None)
    return (train, other) if train and other else None
