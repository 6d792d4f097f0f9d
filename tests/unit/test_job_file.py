"""A job file as a person writes it: short forms, values from the command line, pipes, and what is no job at all."""

import io
import os
import threading
from pathlib import Path

import pytest

from finetune_api.errors import Problem, SpecError
from finetune_api.job_file import JobFile, override
from finetune_api.v1alpha1.job_files import load_job

TEXT = """apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: a}
spec:
  model: {name: org/model}
  dataset:
    mix: [{uri: s3://b/a.csv}, {uri: s3://b/c.csv}]
  method: {type: lora}
  training: {learning_rate: 1e-3}
  storage: {uri: s3://b/p}
"""
SHORT = """apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: a}
spec:
  model: Qwen/Qwen3-8B
  dataset: {train: s3://b/a.csv, eval: 0.05}
  method: {type: lora, lora: {modules_to_save: lm_head}}
  storage: s3://b/p
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(TEXT)
    return tmp_path / "job.yaml"


def problems_of(path: Path, *sets: str) -> list[Problem]:
    with pytest.raises(SpecError) as refused:
        JobFile.read(str(path)).having([override(text) for text in sets]).job()
    return list(refused.value.problems)


def test_short_forms_are_written_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(SHORT)
    read = JobFile.read(str(tmp_path / "job.yaml"))
    spec = read.job().spec
    assert spec == load_job(tmp_path / "job.yaml").spec
    assert (spec.model.name, spec.storage.uri) == ("Qwen/Qwen3-8B", "s3://b/p")
    assert spec.dataset.eval is not None
    assert spec.method.lora is not None
    assert spec.method.lora.modules_to_save == ["lm_head"]
    assert [note.split(":")[0] for note in read.notes] == [
        "spec.model",
        "spec.dataset.eval",
        "spec.storage",
        "spec.method.lora.modules_to_save",
    ]


@pytest.mark.parametrize(
    ("model", "field"),
    [("gpt2", "name"), ("org/model", "name"), ("s3://b/m", "uri"), ("/models/m", "uri"), ("./m", "uri")],
)
def test_a_model_is_a_name_a_uri_or_a_path(path: Path, model: str, field: str) -> None:
    found = JobFile.read(str(path)).having([override(f"model={model}")]).job().spec.model
    assert getattr(found, field) == (f"file://{model}" if "://" not in model and field == "uri" else model)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.learning_rate=1e-4", 1e-4),
        ("spec.training.learning_rate=0.0001", 1e-4),
        ("dataset.mix[1].weight=2", 2.0),
        ("dataset.mix.1.weight=2.5", 2.5),
        ("resourcesPerNode.limits[nvidia.com/gpu]=8", 8),
        ("metadata.name=other", "other"),
        ("spec.dryRun=true", True),
        ("method.lora.target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("dataset.delimiter=", None),
        ("deepspeed={stage: 3}", {"stage": 3}),
        ("gpuType=on", "on"),
    ],
)
def test_the_command_line_sets_values_typed_as_yaml_types_them(path: Path, text: str, value: object) -> None:
    read = JobFile.read(str(path)).having([override(text)])
    job = read.job().model_dump(mode="json", by_alias=True, exclude_unset=True)
    at: object = job
    for part in read.overrides[0].path:
        at = at[int(part) if isinstance(at, list) else part]  # type: ignore[index,call-overload]
    assert at == value


def test_an_override_knows_what_the_file_had(path: Path) -> None:
    read = JobFile.read(str(path)).having([override("training.learning_rate=1"), override("nodes=2")])
    assert read.before == (1e-3, None)


def test_a_wrong_path_gets_the_answer_of_a_file_without_its_line(path: Path) -> None:
    [found] = problems_of(path, "training.learning_rat=1")
    assert (found.code, found.field, found.lines) == ("UnknownField", "spec.training.learning_rat", ())
    assert "did you mean `learning_rate`" in found.cure
    assert found.file == "--set"


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("nothing", "NoValue", "has no `=`"),
        ("a..b=1", "NoPath", "a..b"),
        ("=1", "NoPath", "not the path"),
        ("dataset.mix[7].weight=1", "NoSuchPath", "items 0 to 1"),
        ("training[0]=1", "NoSuchPath", "item 0 of spec.training"),
        ("model.name.x=1", "NoSuchPath", "leads through spec.model.name"),
        ("training.learning_rate=[1", "YamlSyntax", "not YAML"),
        ("nodes=two", "WrongType", "must be a whole number"),
    ],
)
def test_an_override_that_cannot_be_is_refused(path: Path, text: str, code: str, says: str) -> None:
    [found] = problems_of(path, text)
    assert (found.code, found.lines) == (code, ()) or code == "YamlSyntax"
    assert says in found.message


def test_a_later_problem_at_an_override_has_no_line_of_the_file(path: Path) -> None:
    read = JobFile.read(str(path)).having([override("training.learning_rate=1")])
    of_file = Problem(code="X", field="spec.method.type", message="is wrong", cure="mend it")
    of_line = Problem(code="X", field="spec.training.learning_rate", message="is wrong", cure="mend it")
    assert [one.lines for one in read.locate([of_file, of_line])] == [(8,), ()]


def test_a_pipe_is_read_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(TEXT,))
    writer.start()
    assert JobFile.read(str(pipe)).job().metadata.name == "a"
    writer.join()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.replace("lora", "lorra").encode())))
    with pytest.raises(SpecError) as refused:
        JobFile.read("-").job()
    assert (refused.value.problems[0].file, refused.value.problems[0].lines) == ("standard input", (8,))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "Empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", "Binary"),
        ("a: 1".encode("utf-16"), "NotUTF8"),
        (b"a: \xff", "NotUTF8"),
        (b"a: " + b"x" * (5 << 20), "TooLarge"),
        (b"- 1", "WrongType"),
    ],
    ids=["empty", "binary", "utf-16", "latin-1", "large", "a list"],
)
def test_what_is_no_job_is_refused_in_a_sentence(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "job.yaml").write_bytes(content)
    assert problems_of(tmp_path / "job.yaml")[0].code == code


@pytest.mark.parametrize("place", [".", "none.yaml", "job.yaml/below", "/dev/zero", "/proc/self/mem", "x" * 5000])
def test_a_place_without_a_job_is_refused_in_a_sentence(path: Path, place: str) -> None:
    [found] = problems_of(path.parent / place)
    assert found.code in ("CannotRead", "TooLarge")
    assert found.cure
