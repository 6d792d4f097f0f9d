"""`spec.export.serveTest`: defaults, refusals, and where the servers of a machine are looked for."""

import os
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.serving import circumstances
from finetune_trainer.serving.circumstances import circumstances_of
from finetune_trainer.serving.serve_records import ServeSettings
from finetune_trainer.serving.server_commands import (
    NoServerError,
    context_length,
    llama_command,
    server_program,
    vllm_options,
)
from finetune_trainer.serving.server_process import server_environment
from tests.unit.test_api_parse import job

HELD_OUT = {"train": "s3://data/train.jsonl", "eval": {"split": 0.1}}


def test_what_a_job_leaves_out_has_defaults() -> None:
    spec = parse_job(job(spec__dataset=HELD_OUT, spec__export={"serveTest": {}})).spec.export
    request = ExportRequest.of(spec, MethodType.LORA)
    assert request.serve == ServeSettings(prompts=(), rows=8, tokens=32, agreement=0.9)
    assert ExportRequest.by_default(MethodType.LORA).serve is None


def test_each_setting_tests_a_finished_run_again() -> None:
    changed: list[dict[str, Any]] = [{}, {"prompts": ("a",)}, {"rows": 9}, {"tokens": 9}, {"agreement": 0.5}]
    assert len({ServeSettings(**one).digest for one in changed}) == len(changed)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"spec__dataset": {"train": "s3://data/train.jsonl"}}, "NeedsOther", "has no prompts"),
        ({"spec__task": "classification"}, "NeedsOther", "does not continue a text"),
        ({"spec__task": "seq2seq"}, "NeedsOther", "does not continue a text"),
        ({"spec__export": {"serveTest": {"agreement": 1.5}}}, None, "agreement"),
        ({"spec__export": {"serveTest": {"rows": 0}}}, None, "rows"),
    ],
)
def test_a_test_that_cannot_be_made_is_refused(changes: dict[str, Any], code: str | None, words: str) -> None:
    given = {"spec__dataset": HELD_OUT, "spec__export": {"serveTest": {}}} | changes
    with pytest.raises(SpecError) as caught:
        parse_job(job(**given))
    found = [one for one in caught.value.problems if one.field.startswith("spec.export.serveTest")]
    assert found
    assert code in (None, found[0].code)
    assert words in f"{found[0].field} {found[0].message}"


def program(folder: Path, name: str) -> str:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_a_server_is_found_by_its_variable_or_on_the_path(tmp_path: Path) -> None:
    vllm, python = program(tmp_path, "vllm"), program(tmp_path, "python3.11")
    assert server_program("vLLM", {"PATH": str(tmp_path)}) == [vllm, "serve"]
    assert server_program("vLLM", {"FINETUNE_VLLM": vllm, "PATH": ""}) == [vllm, "serve"]
    given = server_program("vLLM", {"FINETUNE_VLLM": python})
    assert given == [python, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    llama = program(tmp_path, "llama-server")
    assert server_program("llama.cpp", {"PATH": str(tmp_path)}) == [llama]
    assert llama_command([llama], tmp_path / "m.gguf", 148)[-3:] == ["148", "--parallel", "1"]
    assert "--max-model-len 148" in " ".join(vllm_options("bfloat16", 148))


def test_a_server_gets_room_for_each_answer_and_no_more_than_the_model_has() -> None:
    prompts = [[5] * 10, [5] * 100]
    assert context_length(prompts, 32, None) == 148
    assert context_length(prompts, 32, 4096) == 148
    assert context_length(prompts, 32, 140) == 140  # vLLM does not start with more


def given(folder: Path, **changes: Any) -> str:
    """The circumstances of a job on this machine."""
    export = {"serveTest": {"prompts": ["a"]}} | changes
    spec = parse_job(job(spec__export=export)).spec.export
    request = ExportRequest.of(spec, MethodType.LORA)
    return circumstances_of("vLLM", request.served_with, {"PATH": str(folder)})


def test_a_test_without_a_verdict_is_made_again_once_its_circumstances_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = given(tmp_path)
    assert given(tmp_path) == before
    image: dict[str, Any] = {"serveTest": {"prompts": ["a"], "image": "vllm:1"}}
    larger = {"serveTest": {**image["serveTest"], "resources": {"limits": {"memory": "9Gi"}}}}
    others = [image, larger, {"attempt": 2}, {"resources": {"limits": {"memory": "9Gi"}}}]
    found = [before, *(given(tmp_path, **one) for one in others)]
    vllm = program(tmp_path, "vllm")
    found.append(given(tmp_path))
    os.utime(vllm, (1, 1))  # another version
    found.append(given(tmp_path))
    monkeypatch.setattr(circumstances, "usable_memory", lambda: 3 << 30)
    found.append(given(tmp_path))
    assert len(set(found)) == len(found)


def test_a_missing_server_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(NoServerError, match="install vLLM, and set FINETUNE_VLLM to the path of vllm"):
        server_program("vLLM", {"PATH": str(tmp_path)})
    with pytest.raises(NoServerError, match=r"FINETUNE_LLAMA_SERVER is .*, which is no program"):
        server_program("llama.cpp", {"FINETUNE_LLAMA_SERVER": str(tmp_path)})


def test_a_server_gets_no_key_but_its_own(tmp_path: Path) -> None:
    secrets = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "HF_TOKEN": "c",
        "FINETUNE_TOKEN": "d",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "PATH": "/bin",
        "HOME": "/root",
    }
    seen = server_environment(secrets, tmp_path, "mine")
    assert not [name for name in seen if name.startswith(("AWS_", "FINETUNE_", "HF_TOKEN"))]
    assert seen["PATH"] == "/bin"
    assert seen["HOME"] == str(tmp_path)
    assert seen["VLLM_API_KEY"] == "mine"
    assert seen["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert seen["HF_HUB_OFFLINE"] == "1"
