"""A probe that the machine ends is no answer: the job may be run again, and nothing of it is kept."""

import errno
import io
import signal
import sys
from pathlib import Path

import pytest
import torch

from finetune_api.errors import FailureCategory, RunError
from finetune_api.messages import MethodType, Task
from finetune_trainer.prepare import architecture_probe
from finetune_trainer.prepare.architecture_probe import (
    AnswerStore,
    ArchitectureProbe,
    answer_in_a_process,
    digest_of,
    own_code,
)
from finetune_trainer.probe import attempt
from finetune_trainer.probe.attempt import answer
from finetune_trainer.probe.machine_faults import fault_of
from finetune_trainer.probe.question import MachineFault, ProbeAnswer, ProbeQuestion, ProbeStage

QUESTION = ProbeQuestion(
    config={"model_type": "starcoder2"}, task=Task.CAUSAL_LM, method=MethodType.FULL, lora={}, zero_stage=2
)


class FullDisk(io.RawIOBase):
    """A file on a disk that has no room."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def full_disk() -> None:
    torch.save({"weights": torch.zeros(4)}, FullDisk())


def no_memory() -> None:
    torch.zeros(1 << 48)


def wrapped_full_disk() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise RuntimeError("cannot save") from error


def wrong_shape() -> None:
    torch.zeros(2, 3) @ torch.zeros(2, 3)


def missing_file() -> None:
    raise OSError("tiny does not appear to have a file named model.safetensors")  # transformers' own, without a number


@pytest.mark.parametrize(
    ("fails", "fault"),
    [
        (full_disk, MachineFault.OTHER),
        (wrapped_full_disk, MachineFault.OTHER),
        (no_memory, MachineFault.MEMORY),
        (wrong_shape, None),
        (missing_file, None),
    ],
)
def test_errors_of_the_machine_are_told_from_those_of_the_architecture(fails: object, fault: object) -> None:
    assert callable(fails)
    with pytest.raises((RuntimeError, OSError)) as caught:
        fails()
    assert fault_of(caught.value) is fault


def test_a_full_disk_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "try_every_stage", lambda question, folder, enter: full_disk())
    found = answer(QUESTION, lambda stage: None)
    assert (found.failed, found.fault) == (ProbeStage.SHRINK, MachineFault.OTHER)


def test_a_process_that_hangs_gives_no_answer(tmp_path: Path) -> None:
    found, final = answer_in_a_process(QUESTION, tmp_path, seconds=0.01)
    assert not final
    assert (found.failed, found.fault) == (ProbeStage.SHRINK, MachineFault.TIME)
    assert found.reason == "no answer within 0.01 s"


ENDS = {
    "kill": ("kill -KILL $$", MachineFault.MEMORY, "the process ended with SIGKILL"),
    "stopped": ("kill -TERM $$", MachineFault.OTHER, "the process ended with SIGTERM"),
    "exit": ("echo a last line; exit 3", MachineFault.OTHER, "the process ended with exit code 3: a last line"),
    "crash": ("kill -SEGV $$", None, "the process ended with SIGSEGV"),
}


@pytest.mark.parametrize("case", ENDS)
def test_only_a_crash_of_the_process_is_the_architectures(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, fault, reason = ENDS[case]
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    found, final = answer_in_a_process(QUESTION, tmp_path)
    assert not final
    assert (found.fault, found.reason) == (fault, reason)


@pytest.mark.parametrize(
    ("fault", "category", "cure"),
    [
        (MachineFault.MEMORY, FailureCategory.OUT_OF_MEMORY, "give the stage more memory (spec.prepare.resources)"),
        (MachineFault.TIME, FailureCategory.UNKNOWN, "when the machine is less busy"),
        (MachineFault.OTHER, FailureCategory.UNKNOWN, "such as a full disk"),
    ],
)
def test_a_fault_of_the_machine_blames_no_architecture_and_is_not_kept(
    fault: MachineFault, category: FailureCategory, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = ProbeAnswer(failed=ProbeStage.ENGINE, reason=signal.SIGKILL.name, fault=fault)
    monkeypatch.setattr(architecture_probe, "answer_in_a_process", lambda question, work: (ended, False))
    answers = AnswerStore(tmp_path)
    probe = ArchitectureProbe(QUESTION.config, QUESTION.task, QUESTION.method, {}, answers, lambda line: None, tmp_path)
    with pytest.raises(RunError) as caught:
        probe.ask(2)
    assert caught.value.category is category
    [problem] = caught.value.problems
    assert problem.code == "ProbeInterrupted"
    assert problem.message.startswith("the probe of starcoder2 ended without an answer, at training under DeepSpeed: ")
    assert cure in problem.cure
    assert answers.load(digest_of(QUESTION)) is None


def test_no_answer_outlives_a_change_of_our_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(QUESTION)
    assert digest_of(QUESTION) == before
    monkeypatch.setattr(architecture_probe, "own_code", lambda: f"{own_code()} changed")
    assert digest_of(QUESTION) != before
