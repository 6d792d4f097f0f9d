"""Wrong jobs and data sets, one YAML file each beside this one: what is in a file, and how it is laid out to be run.

Each happened to somebody: `thread` names the public thread. A fragment under `job` is merged over `BASE`; `text` is a
whole job file, where the mistake is in the YAML itself.
"""

import base64
import copy
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune_api import yaml12

FOLDER = Path(__file__).parent
JOB = "job.yaml"
BASE: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "bad-input"},
    "spec": {
        "model": {"uri": "file://model"},
        "dataset": {"train": "file://train.jsonl"},
        "method": {"type": "lora"},
        "storage": {"uri": "file://store"},
    },
}
TOPICS = {"printer": "out of paper", "password": "how do I reset it", "parcel": "it arrived on Monday"}
GOOD = {
    "bert": [{"text": f"{text}, number {n}", "label": label} for n in range(20) for label, text in TOPICS.items()],
    "llama": [{"prompt": f"What is {n} + 1?", "completion": f" It is {n + 1}."} for n in range(60)],
}

SIZES = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"}  # what shapes of weights follow from


@dataclass(frozen=True)
class Expected:
    """The problem that must come back, and nothing else beside `also`."""

    code: str
    field: str
    line: int | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One wrong input.

    Attributes:
        name: the file's name: an area, a dash, and what is wrong.
        thread: where it happened, as owner/name#number.
        says: what happened there, in one sentence.
        job: fragment of a job.
        without: paths that are taken out of the job.
        text: the job file as it is, instead.
        files: name -> content; without a train.jsonl there is a good one.
        model: name of a tiny model, or what to change of it, see `_lay_model`.
    """

    name: str
    thread: str
    says: str
    expect: Expected
    job: Mapping[str, Any] = field(default_factory=dict)
    without: Sequence[str] = ()
    text: str | bytes | None = None
    files: Mapping[str, Any] = field(default_factory=dict)
    model: str | Mapping[str, Any] = "llama"

    def __str__(self) -> str:
        return self.name

    @property
    def area(self) -> str:
        """The first word of the name."""
        return self.name.partition("-")[0]

    @property
    def base(self) -> str:
        """Name of the tiny model it starts from."""
        return self.model if isinstance(self.model, str) else str(self.model.get("base", "llama"))

    def lay_out(self, folder: Path, models: Callable[[str], Path]) -> Path:
        """Write job, data and model into a folder; returns the job file.

        Args:
            models: gives the folder of a tiny model by name.
        """
        for name, content in {"train.jsonl": jsonl(GOOD[self.base]), **self.files}.items():
            if content is not None:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_bytes(content))
        _lay_model(folder / "model", self.model, models(self.base))
        path = folder / JOB
        path.write_bytes(_bytes(self.text) if self.text is not None else self._job().encode())
        return path

    def _job(self) -> str:
        merged = _merge(copy.deepcopy(BASE), self.job)
        for dotted in self.without:
            *parents, last = dotted.split(".")
            at = merged
            for part in parents:
                at = at[part]
            del at[last]
        return yaml12.dump(merged)


def jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(path: Path) -> Case:
    """The case in a file."""
    data = yaml.safe_load(path.read_text())
    expect = data.pop("expect")
    expect["also"] = tuple(expect.get("also", ()))
    return Case(name=path.stem, expect=Expected(**expect), **data)


def load_all() -> list[Case]:
    """Every case, by name."""
    return [load(path) for path in sorted(FOLDER.glob("*.yaml"))]


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = copy.deepcopy(value)
    return under


def _bytes(content: Any) -> bytes:
    """Text as UTF-8; or an object that says how bytes are made: see the branches."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    made = b"".join(_made(content))
    if content.get("gzip"):
        made = gzip.compress(made, mtime=0)
    if content.get("zstd"):
        import zstandard

        made = zstandard.compress(made)
    return made[: len(made) - int(content.get("cut", 0))]


def _made(content: Mapping[str, Any]) -> Iterator[bytes]:
    encoding = content.get("encoding", "utf-8")
    yield str(content.get("text", "")).encode(encoding)
    yield base64.b64decode(content.get("base64", ""))
    for part in content.get("repeat", ()):  # [text, times]
        yield str(part[0]).encode(encoding) * int(part[1])
    if "parquet" in content:
        import pyarrow as pa
        import pyarrow.parquet

        sink = io.BytesIO()
        pa.parquet.write_table(pa.Table.from_pylist(content["parquet"]), sink)
        yield sink.getvalue()


def _lay_model(folder: Path, model: str | Mapping[str, Any], base: Path) -> None:
    """The tiny model as it is, or with values of JSON files changed, files left out, and others added."""
    change: Mapping[str, Any] = {} if isinstance(model, str) else model
    if not change:
        folder.symlink_to(base, target_is_directory=True)
        return
    shutil.copytree(base, folder, copy_function=os.link)
    for name in change.get("without", ()):
        (folder / name).unlink()
    for name, values in change.get("json", {}).items():
        path = folder / name
        data = json.loads(path.read_text()) if path.exists() else {}
        made = {key: value for key, value in _merge(data, values).items() if value is not None}
        path.unlink(missing_ok=True)  # it is a link: never write through it
        path.write_text(json.dumps(made))
    if SIZES & change.get("json", {}).get("config.json", {}).keys():
        _fit_weights(folder)
    for name, content in change.get("files", {}).items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(_bytes(content))


def _fit_weights(folder: Path) -> None:
    """A header with tensors of config.json's sizes, all of them over the same two bytes: no weight is read."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    tensors = {
        name: {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [0, 2]}
        for name, weight in model.state_dict().items()
    }
    header = json.dumps(tensors).encode()
    path = folder / "model.safetensors"
    path.unlink()  # it is a link: never write through it
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
