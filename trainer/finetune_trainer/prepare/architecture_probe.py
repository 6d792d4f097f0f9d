"""The question whether an unproven architecture trains, asked of a process of its own; answers are kept.

An answer holds for an architecture of this shape with a method, a task, a ZeRO stage, this code and these versions of
the libraries. It is kept on this machine and, by the prepare stage, in the job's storage.
"""

import contextlib
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import finetune_api
import finetune_trainer
from finetune_api.contract import probe_key
from finetune_api.errors import FailureCategory, ModelError, Problem, RunError
from finetune_api.messages import MethodType, Task
from finetune_trainer.model.families import family_of, is_proven
from finetune_trainer.model.files import model_problem
from finetune_trainer.probe.question import MachineFault, ProbeAnswer, ProbeQuestion, ProbeStage, probed_as
from finetune_trainer.storage import NotFoundError, ObjectStore

# packages whose code a probe runs, beside the API's
OWN_CODE = ("checkpoints", "dataset", "evaluations", "model", "probe", "process", "worker")
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "accelerate")
SECONDS = 600  # about 20 on an idle machine
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
# values of config.json that say nothing of a model's code
WITHOUT_SHAPE = frozenset(
    {
        "dtype",
        "torch_dtype",
        "auto_map",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "quantization_config",
        "architectures",
        "transformers_version",
        "_name_or_path",
        "use_cache",
    }
)


@dataclass(frozen=True)
class AnswerStore:
    """Answers of earlier probes.

    Attributes:
        folder: on this machine.
        store: the job's storage; None where nothing is stored.
    """

    folder: Path
    store: ObjectStore | None = None

    def load(self, digest: str) -> ProbeAnswer | None:
        """Return an earlier answer; None without one."""
        with contextlib.suppress(OSError, ValidationError):
            return ProbeAnswer.model_validate_json((self.folder / f"{digest}.json").read_text("utf-8"))
        if self.store is not None:
            with contextlib.suppress(NotFoundError, ValidationError):
                return ProbeAnswer.model_validate_json(self.store.get(probe_key(digest)))
        return None

    def keep(self, digest: str, answer: ProbeAnswer) -> None:
        """Keep an answer. A folder that cannot be written costs the next job of this machine a probe."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f"{digest}.{os.getpid()}"
            partial.write_text(answer.to_json(), "utf-8")
            partial.replace(self.folder / f"{digest}.json")
        if self.store is not None:
            self.store.put(probe_key(digest), answer.to_json().encode())


@dataclass(frozen=True)
class ArchitectureProbe:
    """A model's architecture with a job's task and method.

    Attributes:
        config: the model's `config.json`.
        lora: LoraConfig names and values; empty for full fine-tuning.
        answers: earlier answers.
        report: called with a line of progress.
        work: folder for files of the process.
    """

    config: Mapping[str, Any]
    task: Task
    method: MethodType
    lora: Mapping[str, Any]
    answers: AnswerStore
    report: Callable[[str], None]
    work: Path

    def ask(self, zero_stage: int) -> ProbeAnswer:
        """Return what is special about the architecture; a proven one is not probed.

        Raises:
            ModelError: a tiny model of the architecture failed; says where, with the library's last line.
            RunError: the probe ended without an answer, by a fault of the machine.
        """
        task = probed_as(self.task, family_of(self.model_type).tasks)
        if is_proven(self.model_type) or task is None:
            return ProbeAnswer()
        question = ProbeQuestion(
            config={name: value for name, value in self.config.items() if name not in WITHOUT_SHAPE},
            task=task,
            method=self.method,
            lora=dict(self.lora),
            zero_stage=zero_stage,
        )
        digest = digest_of(question)
        answer = self.answers.load(digest)
        if answer is None:
            self.report(
                f"model: {self.model_type} is not one of the families that tests train; a tiny model of it is trained "
                f"now (ZeRO-{zero_stage}), once, for about half a minute"
            )
            answer, final = answer_in_a_process(question, self.work)
            if final:
                self.answers.keep(digest, answer)
        if answer.fault:
            raise _interrupted(self.model_type, answer)
        if answer.failed:
            raise ModelError(self._failed(answer, zero_stage))
        self.report(f"model: a tiny {self.model_type} was trained with ZeRO-{zero_stage}, saved and loaded")
        return answer

    @property
    def model_type(self) -> str:
        """Name of the architecture."""
        return str(self.config["model_type"])

    def _failed(self, answer: ProbeAnswer, zero_stage: int) -> Problem:
        assert answer.failed is not None
        where = f"{self.model_type} with task {self.task}, method {self.method} and ZeRO-{zero_stage}"
        message = f"{where} does not train: a tiny model failed at {answer.failed}: {answer.reason}"
        return model_problem("ArchitectureNotSupported", message, self._cure(answer, zero_stage))

    def _cure(self, answer: ProbeAnswer, zero_stage: int) -> str:
        failed = answer.failed
        if "lora_dropout" in answer.reason:  # PEFT's, of experts that are one parameter
            return "set spec.method.lora.lora_dropout to 0"
        if failed is ProbeStage.ENGINE and zero_stage == 3:
            return "set spec.deepspeed.stage to 2, or use a model of another architecture"
        if failed in (ProbeStage.STEP, ProbeStage.ENGINE, ProbeStage.RELOAD) and self.method is not MethodType.FULL:
            return (
                "name other modules in spec.method.lora.target_modules, use method full, or a model of another "
                "architecture"
            )
        return "use a model of another architecture"


CURES = {
    MachineFault.MEMORY: (
        "give the stage more memory (spec.prepare.resources), or free memory on this machine; then run the job again"
    ),
    MachineFault.TIME: (
        "run the job again when the machine is less busy, or give the stage more CPUs (spec.prepare.resources); if an "
        "idle machine does not answer either, use a model of another architecture"
    ),
    MachineFault.OTHER: (
        "remove the cause that the message names, such as a full disk or a taken port; then run the job again"
    ),
}


def _interrupted(model_type: str, answer: ProbeAnswer) -> RunError:
    assert answer.fault is not None
    message = f"the probe of {model_type} ended without an answer, at {answer.failed}: {answer.reason}"
    category = FailureCategory.OUT_OF_MEMORY if answer.fault is MachineFault.MEMORY else FailureCategory.UNKNOWN
    return RunError(model_problem("ProbeInterrupted", message, CURES[answer.fault]), category)


def digest_of(question: ProbeQuestion) -> str:
    """Return the same for the same question with the same code and the same versions of the libraries."""
    versions = {name: version(name) for name in PACKAGES}
    whole = [own_code(), versions, question.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@functools.cache
def own_code() -> str:
    """Return a hash of our code that a probe runs: no answer outlives a change of it."""
    root, whole = Path(finetune_trainer.__file__).parent, hashlib.sha256()
    for folder in (Path(finetune_api.__file__).parent, *(root / name for name in OWN_CODE)):
        for path in sorted(folder.rglob("*.py")):
            whole.update(f"{path.relative_to(folder.parent)}\0".encode() + path.read_bytes())
    return whole.hexdigest()


def answer_in_a_process(question: ProbeQuestion, work: Path, seconds: float = SECONDS) -> tuple[ProbeAnswer, bool]:
    """Return the answer, and whether it is final: a process that crashed may fare better at another time, and a fault
    of the machine is no answer.

    The process sees no GPU: it is to answer the same wherever it runs, and takes no memory of a GPU.

    Args:
        work: folder for its files.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-ask-", dir=work) as folder:
        asked, answers, log = (Path(folder) / name for name in ("question.json", "answers", "log"))
        asked.write_text(question.model_dump_json(), "utf-8")  # with its nulls: they replace defaults
        answers.touch()
        program = [sys.executable, "-W", "ignore", "-m", "finetune_trainer.probe", str(os.getpid())]
        environ = {**os.environ, **ENVIRONMENT, "TMPDIR": folder}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*program, str(asked), str(answers)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                reason = f"no answer within {seconds:g} s"
                return ProbeAnswer(failed=_stage_of(answers), reason=reason, fault=MachineFault.TIME), False
            finally:
                process.kill()
                process.wait()
        if code == 0:
            answer = ProbeAnswer.model_validate_json(answers.read_text("utf-8").splitlines()[-1])
            return answer, answer.fault is None
        return ProbeAnswer(failed=_stage_of(answers), reason=_end_of(code, log), fault=_fault_of(code)), False


def _stage_of(answers: Path) -> ProbeStage:
    lines = answers.read_text("utf-8").splitlines()
    return ProbeStage[lines[-1]] if lines else ProbeStage.SHRINK


def _fault_of(code: int) -> MachineFault | None:
    """Return the fault of the machine that ended the process; None for a crash, such as SIGSEGV.

    The process catches what libraries raise, so an exit code of its own is none of theirs.
    """
    if -code == signal.SIGKILL:  # the kernel's, for want of memory
        return MachineFault.MEMORY
    return MachineFault.OTHER if code > 0 or -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) else None


def _end_of(code: int, log: Path) -> str:
    how = f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return f"{how}: {lines[-1].strip()[:200]}" if lines else how


def answer_folder(environ: Mapping[str, str]) -> Path:
    """Return where answers are kept on this machine."""
    home = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(home) / "finetune-operator" / "probes"
