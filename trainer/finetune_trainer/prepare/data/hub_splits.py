"""Which files of a data set on the hub are a split: as its card says, by names, or as the hub has converted them. Pure.

The rules are those of the library datasets: https://huggingface.co/docs/hub/datasets-data-files-configuration.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from finetune_api.errors import DataError, Problem, SpecError
from finetune_trainer.prepare.data import file_patterns

Splits = dict[str, list[str]]  # name -> files
WORDS = {  # in names of files and folders
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
EVALUATION = ("validation", "valid", "val", "dev", "eval", "test")  # the first that is there, for spec.dataset.eval
DEFAULT = "default"


@dataclass(frozen=True)
class Config:
    """One configuration of a data set.

    Attributes:
        chosen: whether the card says that it is the default.
    """

    splits: Splits
    chosen: bool = False


Table = dict[str, Config]


@dataclass(frozen=True)
class Wanted:
    """The configuration and splits that a job needs.

    Attributes:
        splits: names, of which the first that is there is taken.
    """

    splits: tuple[str, ...]
    config: str | None = None

    @classmethod
    def of(cls, uri: str, field: str, query: str | None) -> "Wanted":
        """Read `?split=...&config=...`; without a split it is train, or what a field of evaluation means.

        Raises:
            SpecError: something else is asked for.
        """
        given = dict(parse_qsl((query or "").lstrip("/?"), keep_blank_values=True))
        if unknown := sorted(given.keys() - {"split", "config"}) or [
            name for name, value in given.items() if not value
        ]:
            message = f"{uri!r} asks for {unknown[0]!r}, which is unknown or has no value"
            cure = "write ?split=train, ?config=name, or ?split=train&config=name"
            raise SpecError(Problem(code="InvalidURI", field=field, message=message, cure=cure))
        if set("[+ ") & set(given.get("split", "")):  # as datasets writes them; in a query + is a blank
            message = f"{uri!r} asks for a part of a split, or for several"
            cure = "name whole splits: several in spec.dataset.mix, a part of the rows with a weight"
            raise SpecError(Problem(code="InvalidURI", field=field, message=message, cure=cure))
        usual = EVALUATION if field == "spec.dataset.eval" else ("train",)
        return cls((given["split"],) if "split" in given else usual, given.get("config"))


def of_card(configs: Any, names: Sequence[str]) -> Table:
    """Return the configurations that a card lists under `configs`, as far as their files are there."""
    table: Table = {}
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, Mapping):
            name = str(config.get("config_name", DEFAULT))
            splits = _card_splits(config, names)
            table[name] = Config(
                {split: files for split, files in splits.items() if files}, bool(config.get("default"))
            )
    return {name: config for name, config in table.items() if config.splits}


def _card_splits(config: Mapping[str, Any], names: Sequence[str]) -> Splits:
    folder = str(config.get("data_dir") or "").strip("/")
    inside = [name for name in names if name.startswith(f"{folder}/")] if folder else list(names)
    listed = config.get("data_files")
    if not listed:
        table = by_names(inside)
        return table[DEFAULT].splits if table else {}
    if isinstance(listed, Mapping):
        listed = [{"split": split, "path": path} for split, path in listed.items()]
    if isinstance(listed, str) or all(isinstance(item, str) for item in listed):
        listed = [{"split": "train", "path": listed}]
    splits: Splits = {}
    for item in listed:
        paths = item.get("path") or []
        for path in [paths] if isinstance(paths, str) else paths:
            matching = _matching(inside, f"{folder}/{path}" if folder else path)
            splits.setdefault(str(item.get("split", "train")), []).extend(matching)
    return splits


def _matching(names: Sequence[str], path: str) -> list[str]:
    path = path.strip("/").removeprefix("./")
    if path in names:
        return [path]
    if file_patterns.is_pattern(path):
        return file_patterns.matching(names, path)
    return file_patterns.data_files(name for name in names if name.startswith(f"{path}/"))


def by_names(names: Sequence[str]) -> Table:
    """Return the splits by the names of files, or else of their folders; all is train where no name shows a split."""
    data = file_patterns.likely_data(names)
    for place in (2, 0):  # of the name's parts around its last slash: the file, then its folders
        splits: Splits = {}
        for name in data:
            parts = set(re.split(r"[^a-z]+", name.rpartition("/")[place].lower()))
            if (split := next((split for split, words in WORDS.items() if parts & words), None)) is not None:
                splits.setdefault(split, []).append(name)
        if splits:
            return {DEFAULT: Config(splits)}
    return {DEFAULT: Config({"train": data})} if data else {}


def of_converted(names: Iterable[str]) -> Table:
    """Return the configurations of the branch with the hub's Parquet files: `config/split/0000.parquet`."""
    configs: Table = {}
    for name in sorted(names):
        config, _, rest = name.partition("/")
        split, _, file = rest.rpartition("/")
        if file.endswith(".parquet") and split:
            splits = configs.setdefault(config, Config({})).splits
            splits.setdefault(split.removeprefix("partial-"), []).append(name)
    return configs


def files_of(table: Table, wanted: Wanted, repository: str, field: str) -> list[str]:
    """Return the files of the split that is wanted.

    Raises:
        DataError: the configuration or split does not exist; the error names those that do.
    """
    if not table:
        message = f"there are no data files in {repository}"
        cure = "name a file, a pattern or a folder of the data set"
        raise DataError(Problem(code="FileNotFound", field=field, message=message, cure=cure))
    known = ", ".join(sorted(table))
    chosen = [name for name, config in table.items() if config.chosen]
    config = wanted.config or next(iter(chosen or ([DEFAULT] if DEFAULT in table else [])), None)
    if config is None and len(table) == 1:
        (config,) = table
    if config is None:
        message = f"{repository} has several configurations: {known}"
        cure = f"choose one: hf://datasets/{repository}?config={sorted(table)[0]}"
        raise DataError(Problem(code="SeveralConfigs", field=field, message=message, cure=cure))
    if config not in table:
        message = f"{repository} has no configuration {config!r}; it has {known}"
        raise DataError(Problem(code="ConfigNotFound", field=field, message=message, cure="name one of them"))
    splits = table[config].splits
    split = next((split for split in wanted.splits if split in splits), None)
    if split is None:
        named = " or ".join(map(repr, wanted.splits[:1] if len(wanted.splits) == 1 else ("validation", "test")))
        message = f"{repository} has no split {named}; it has {', '.join(sorted(splits))}"
        cure = f"name one of them: hf://datasets/{repository}?split={sorted(splits)[0]}"
        raise DataError(Problem(code="SplitNotFound", field=field, message=message, cure=cure))
    return sorted(splits[split])
