"""What an earlier job prepared, found by a fingerprint of all that it depends on: then no data is read again."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.contract import File, dataset_prefix
from finetune_api.messages import DatasetFacts, Message
from finetune_api.preference_losses import PREFERENCE_LOSSES
from finetune_api.v1alpha1 import EvalSplit, FineTuneJob
from finetune_api.v1alpha1.field_facts import SHAPES_DATA
from finetune_trainer.prepare.job_inputs import Inputs
from finetune_trainer.prepare.models import BaseModel
from finetune_trainer.prepare.plan import planner
from finetune_trainer.prepare.quality.report import QualityReport
from finetune_trainer.prepare.tokens.tokenize import options_key
from finetune_trainer.storage import NotFoundError, ObjectStore, read_manifest

READING = 4  # version of all that turns files to examples and splits: what an older one made is not reused


class _Lead(Message):
    """`datasets/index/<fingerprint>.json`: a link from sources and options to a prepared data set.

    Attributes:
        used: when it was made or last reused, ISO 8601; `tokens.expiry` goes by it.
    """

    facts: DatasetFacts
    used: str


@dataclass(frozen=True)
class PreparedData:
    """A data set in storage, with the report of when it was prepared."""

    facts: DatasetFacts
    report: QualityReport


def index_key(job: FineTuneJob, found: Inputs, base: BaseModel) -> str:
    """Return the key of the index object: the hash of everything that the prepared data depends on.

    The code is not part of the hash; READING and the version of the tokens stand for it.
    """
    fingerprint = {"reading": READING, **_derived(job, found, base), **_given(job)}
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    return f"datasets/index/{digest}.json"


def _derived(job: FineTuneJob, found: Inputs, base: BaseModel) -> dict[str, Any]:
    """Return the values that prepare derives from fields with the marker `ShapesData(through=...)`, by that name."""
    spec = job.spec.dataset
    return {
        "task": f"{found.task} of single completions" if _unpaired(job) else found.task,
        "sources": found.sources.fingerprint,
        "split": [spec.eval.split, planner.seed_of(job)] if isinstance(spec.eval, EvalSplit) else None,
        "seed": planner.seed_of(job) if spec.mix else None,  # the seed chooses rows of a source with a weight below 1
        "skipped_percent": spec.max_invalid_percent if spec.on_invalid == "Skip" else None,
        "tokens": options_key(spec, found.template, found.setting.prompts),
        "tokenizer": base.facts.commit,
        "limit": found.setting.limit,
    }


def _unpaired(job: FineTuneJob) -> bool:
    """Return whether the loss takes single completions, so that a pair becomes two rows."""
    loss = job.spec.preference.loss_type if job.spec.preference else None
    return loss is not None and not PREFERENCE_LOSSES[loss].paired


def _given(job: FineTuneJob) -> dict[str, Any]:
    """Return the values of all other fields with the marker ShapesData, as the job gives them."""
    whole = job.model_dump(mode="json", by_alias=True)
    changed = job.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    given = {}
    for path, shapes in SHAPES_DATA.items():
        if shapes.key:
            given[shapes.key] = _value_at(whole, path.split("."))
        elif not shapes.through and (value := _value_at(changed, path.split("."))) is not None:
            given[path] = value
    return given


def _value_at(data: Any, names: Sequence[str]) -> Any:
    """Return the value at a path of names, or None. Of a list: the values of its items, or None if all are None."""
    if not names:
        return data
    if isinstance(data, list):
        values = [_value_at(item, names) for item in data]
        return values if any(value is not None for value in values) else None
    return _value_at(data.get(names[0]), names[1:]) if isinstance(data, dict) else None


def find_prepared(store: ObjectStore, key: str) -> PreparedData | None:
    """Return the data set that an index entry leads to, if it is still there and was made by this version."""
    try:
        facts = _Lead.model_validate_json(store.get(key)).facts
        if read_manifest(store, dataset_prefix(facts.sha256)) is None:
            return None
        report = QualityReport.model_validate_json(store.get(dataset_prefix(facts.sha256) + File.DATASET_REPORT))
    except (NotFoundError, ValidationError):
        return None
    return PreparedData(facts, report)


def remember(store: ObjectStore, key: str, facts: DatasetFacts, now: datetime) -> None:
    """Write the index entry: last, when the data set is stored. Writing it again marks the data set as used."""
    store.put(key, _Lead(facts=facts, used=now.isoformat(timespec="seconds")).to_json().encode())
