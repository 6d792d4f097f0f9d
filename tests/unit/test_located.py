"""Problems found after a job was read get the line of their field in the job's file."""

from pathlib import Path

import pytest

from finetune_api.errors import Problem
from finetune_api.v1alpha1.job_files import located

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: lines}
spec:
  model:
    uri: file://model
  dataset:
    train: file://train.jsonl
    maxLength: 512
  podTemplate:
    env:
      - name: A
        value: b
      - name: C
        value: d
"""
FIELDS = {
    "spec.dataset.maxLength": 9,
    "spec.model": 5,
    "spec.podTemplate.env[1].value": 15,
    "spec.method.lora.target_modules": 4,  # of the nearest that is written
    "spec.dataset.chatTemplate": 7,
    "spec.dataset.train": None,  # a line of the job would be mistaken for one of the data
    "plan.json": None,
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_has_the_line_of_the_job_file(job: Path, field: str) -> None:
    [found] = located([Problem(code="Code", field=field, message="is wrong", cure="mend it")], job)
    line = FIELDS[field]
    assert (found.file, found.lines) == ((None, ()) if line is None else (str(job), (line,)))


def test_lines_of_a_data_file_stay(job: Path) -> None:
    row = Problem(
        code="Code", field="spec.dataset.train", message="m", cure="c", file="train.jsonl", lines=(3, 7), count=2
    )
    other = Problem(code="Code", field="spec.model", message="m", cure="c")
    assert located([row, other], job)[0] == row


def test_a_file_that_cannot_be_read_is_not_read_again(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    problem = Problem(code="CannotRead", field=str(missing), message="m", cure="c", file=str(missing))
    assert located([problem], missing) == [problem]
