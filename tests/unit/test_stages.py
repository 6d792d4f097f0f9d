"""The job as a pod is given it."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_trainer.process.stages import load_given_job, load_new_job

OBJECT: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {
        "name": "j",
        "namespace": "team-a",
        "uid": "8a5a7f9c-0d9b-4a53-8f53-0e6d5b1c7a11",
        "managedFields": [{"manager": "kubectl"}],
        "aFieldOfTomorrow": {"x": 1},
    },
    "spec": {
        "model": {"uri": "s3://b/m"},
        "dataset": {"train": "s3://b/t.csv"},
        "method": {"type": "lora"},
        "storage": {"uri": "s3://b/o"},
    },
    "status": {"phase": "Pending", "aFieldOfTomorrow": 1},
}


def write(folder: Path, job: object) -> Path:
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def test_what_an_api_server_adds_is_passed_over(tmp_path: Path) -> None:
    job = load_given_job(write(tmp_path, OBJECT))
    assert (job.metadata.name, job.metadata.namespace, job.status) == ("j", "team-a", None)


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        ({"aFieldOfTomorrow": 1}, True),
        ({"checkpoint": {"everySteps": 5, "everyMinutes": 5}}, True),  # a rule that came later
        ({"nodes": 0}, False),
    ],
)
def test_a_run_that_has_begun_is_not_stopped_by_another_version(
    tmp_path: Path, change: dict[str, Any], goes_on: bool
) -> None:
    path = write(tmp_path, {**OBJECT, "spec": {**OBJECT["spec"], **change}})
    with nullcontext() if goes_on else pytest.raises(SpecError):
        load_given_job(path)


def test_the_spec_is_still_checked_by_prepare(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="aFieldOfTomorrow"):
        load_new_job(write(tmp_path, {**OBJECT, "spec": {**OBJECT["spec"], "aFieldOfTomorrow": 1}}))
