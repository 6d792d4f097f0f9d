"""The test of artifacts on a server: made once for each, and kept in its manifest and on its card."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.contract import Env, dataset_prefix
from finetune_api.messages import Quantization
from finetune_api.results import ServeOutcome
from finetune_api.tasks import spec_of
from finetune_trainer.export.artifact_files import ExportSource
from finetune_trainer.export.forms import ExportRequest, FormFiles
from finetune_trainer.export.gguf.gguf_files import gguf_name
from finetune_trainer.export.layout import CARD
from finetune_trainer.export.serving_files import served_by_vllm
from finetune_trainer.judge.judge_process import fetch_rows
from finetune_trainer.model.files import CHAT_TEMPLATE
from finetune_trainer.pages.short_texts import cut_to
from finetune_trainer.process.asked_program import AskedProgram, ProgramError
from finetune_trainer.process.control_group import usable_memory
from finetune_trainer.process.model_memory import GIB, SPARE, check_memory, weights_in, weights_of
from finetune_trainer.serving.asked_server import ask_server, concluded
from finetune_trainer.serving.circumstances import circumstances_of
from finetune_trainer.serving.serve_records import (
    TRIED_WITH,
    ExpectedAnswers,
    Outcome,
    ServeQuestion,
    ServeSettings,
    ServeTestResult,
)
from finetune_trainer.serving.server_client import ServerClient
from finetune_trainer.serving.server_commands import (
    NoServerError,
    context_length,
    llama_command,
    server_program,
    vllm_options,
)
from finetune_trainer.serving.server_process import MEMORY_SHARE
from finetune_trainer.serving.serving_manifests import ServedArtifact
from finetune_trainer.storage import (
    CorruptedError,
    ManifestInvalidError,
    NotFoundError,
    bucket_is_missing,
    download_files,
    read_manifest,
)

ASK_SECONDS = 6 * 3600.0  # of the process with transformers
LINE = "serve: "
SPARE_FOR_SERVER = 4 * GIB  # vLLM on a CPU, its cache, and its two processes
LONGEST = 900  # characters of the message of a condition, in a termination message of 4,096 bytes
RESULT = "serve_result"  # in the manifest of an artifact
ORDER: Sequence[str] = ("EndsMissed", "OtherAnswers", "ServerFailed", "NotServable", "NotTested", "SameAnswers")


@dataclass(frozen=True)
class _Expected:
    """What a server is asked. `folder`: has the base model, which an adapter needs."""

    answers: ExpectedAnswers
    folder: Path
    artifact: Path


class _NotTestedError(Exception):
    """An artifact that cannot be tested here; the text is the reason."""


@dataclass
class ServeTester:
    """The tests of one export.

    Attributes:
        environ: names the servers of this machine.
        results: of the forms that were tested, by the names of their folders.
    """

    request: ExportRequest
    report: Callable[[str], None]
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    results: dict[str, ServeTestResult] = field(default_factory=dict)
    _expected: _Expected | None = None

    def recall(self, form: FormFiles, info: Mapping[str, Any]) -> None:
        """Take the result of an artifact with the same weights, unless another test may give another one.

        Args:
            info: of its manifest.
        """
        settings, tried_with = self.request.serve, info.get(TRIED_WITH)
        if tried_with and tried_with != circumstances_of(form.server, self.request.served_with, self.environ):
            return
        if settings is not None and info.get("serve_test") == settings.digest:
            self.known(form, info)

    def has_result(self, form: FormFiles) -> bool:
        """Return whether no server has to be asked for a form."""
        return self.request.serve is None or form.name in self.results

    def ask_transformers(self, form: FormFiles, source: ExportSource, folder: Path, work: Path) -> None:
        """Let transformers answer the prompts with an artifact in Hugging Face's layout, if its form is tested.

        Raises:
            StorageError: the storage cannot be reached, or has no such bucket.
        """
        settings, self._expected = self.request.serve, None
        if settings is None or self.has_result(form):
            return
        try:
            if self._is_servable(settings, form, source):
                self._expected = self._ask(settings, form, source, folder, work / "serve")
        except (_NotTestedError, NoServerError, ProgramError, ValidationError, OSError) as error:
            self._conclude(form, settings, None, "NotTested", str(error))
        except (CorruptedError, NotFoundError, ManifestInvalidError) as error:
            if bucket_is_missing(error):
                raise
            self._conclude(form, settings, None, "NotTested", error.problems[0].message)
        if self._expected is None:
            shutil.rmtree(work / "serve", ignore_errors=True)  # the rest of the export may need the space

    def ask_server(self, form: FormFiles, source: ExportSource, folder: Path) -> None:
        """Let a server answer the same prompts with the artifact, and add the result to its card."""
        settings = self.request.serve
        if settings is None:
            return
        if self._expected is not None:
            self.results[form.name] = self._compare(settings, form, source, replace(self._expected, artifact=folder))
            shutil.rmtree(self._expected.folder, ignore_errors=True)
            self._expected = None
        with (folder / CARD).open("a", encoding="utf-8") as card:
            card.write(f"\n## Served\n\n{self.results[form.name].message}.\n")

    def recorded(self, form: FormFiles) -> dict[str, object]:
        """Return what the manifest of an artifact says of its test."""
        result = self.results.get(form.name)
        if result is None:
            return {}
        kept: dict[str, object] = {RESULT: result.model_dump(mode="json", exclude_none=True)}
        if result.undecided:
            kept[TRIED_WITH] = circumstances_of(form.server, self.request.served_with, self.environ)
        return kept

    def known(self, form: FormFiles, info: Mapping[str, Any]) -> ServeTestResult | None:
        """Return the result of an artifact, which may be of an earlier export.

        Args:
            info: of its manifest.
        """
        if self.request.serve is None:
            return None
        if form.name not in self.results and RESULT in info:
            try:
                self.results[form.name] = ServeTestResult.model_validate(info[RESULT])
            except ValidationError:
                return None
        return self.results.get(form.name)

    def close(self, forms: Sequence[FormFiles]) -> ServeOutcome | None:
        """Return what all tests show; None without a test."""
        found = {form.name: self.results[form.name] for form in forms if form.name in self.results}
        if self.request.serve is None or not found:
            return None
        for name, result in found.items():
            self.report(f"served: {name}: {result.message}")
        ordered = sorted(found, key=lambda name: ORDER.index(found[name].reason))
        worst = found[ordered[0]]
        message = "; ".join(f"{name}: {found[name].message}" for name in ordered)
        return ServeOutcome(served=worst.served, reason=worst.reason, message=cut_to(message, LONGEST))

    def _conclude(
        self, form: FormFiles, settings: ServeSettings, served: bool | None, reason: Outcome, message: str
    ) -> None:
        self.results[form.name] = concluded(settings, served, reason, message)

    def _is_servable(self, settings: ServeSettings, form: FormFiles, source: ExportSource) -> bool:
        """Return whether the server takes artifacts of this kind, before the costly part.

        Raises:
            NoServerError: the server is not on this machine.
            _NotTestedError: the model writes no text.
        """
        task = spec_of(source.plan.task)
        if not (task.writes and task.continues):
            raise _NotTestedError(f"a model for the task {source.plan.task} does not continue a text")
        if not form.converts:
            answer = served_by_vllm(source.plan, merged=form.merges)
            if answer.served is False:
                self._conclude(form, settings, False, "NotServable", answer.reason)
                return False
        server_program(form.server, self.environ)
        return True

    def _ask(
        self, settings: ServeSettings, form: FormFiles, source: ExportSource, folder: Path, work: Path
    ) -> _Expected:
        """Return the answers of transformers."""
        plan, store = source.plan, source.store
        adapter = form.kind == "adapter"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        base, rows, prefix = source.base, work / "dataset", dataset_prefix(plan.dataset.sha256)
        files = source.base_manifest().files if adapter else ()
        beside = Env.SERVE_FOLDER in self.environ  # the server has a container and memory of its own
        memory, spare = usable_memory() * MEMORY_SHARE, SPARE if beside else SPARE_FOR_SERVER
        check_memory(weights_of({one.path: one.size for one in files}), weights_in(folder), memory, spare)
        if files:
            download_files(store, plan.model.prefix, files, base)
        if not settings.prompts:
            fetch_rows(store, prefix, rows, settings.rows)
        prepared = read_manifest(store, prefix)
        question = ServeQuestion(
            plan=plan,
            settings=settings,
            base=str(base) if adapter else "",
            artifact=str(folder),
            dataset="" if settings.prompts else str(rows),
            chat=prepared is not None and any(one.path == CHAT_TEMPLATE for one in prepared.files),
        )
        self.report(f"serve: {form.name} is tested on {form.server}")
        cure = "lower export.serveTest.rows or maxNewTokens, or give the stage more CPUs"
        program = AskedProgram("finetune_trainer.serving", LINE, ASK_SECONDS, cure)
        told = program.ask(question.model_dump_json(), work, self.report, self.environ)
        return _Expected(ExpectedAnswers.model_validate_json(told), work, folder)

    def _compare(
        self, settings: ServeSettings, form: FormFiles, source: ExportSource, expected: _Expected
    ) -> ServeTestResult:
        """Return what the answers of a server show."""
        adapter = source.plan.lora if form.kind == "adapter" else None
        served = ServedArtifact(source.job, "", adapter)
        client = ServerClient("", served.name, kind=form.server)
        length = context_length(expected.answers.prompts, settings.tokens, source.plan.model.max_positions)
        try:
            command = self._command(expected, served, form, length, source.base)
            if Env.SERVE_FOLDER in self.environ:
                expected.artifact.parent.chmod(0o755)  # the container beside this one may read as another user
            return ask_server(command, client, expected.answers, settings, self.report, self.environ)
        except (NoServerError, OSError) as error:
            return concluded(settings, None, "NotTested", str(error))

    def _command(
        self, expected: _Expected, served: ServedArtifact, form: FormFiles, length: int, base: Path
    ) -> list[str]:
        program = server_program(form.server, self.environ)
        if form.server == "vLLM":
            own = served.command(str(expected.artifact), str(base))
            return [*program, *own, *vllm_options(expected.answers.dtype, length)]
        file = expected.artifact / gguf_name(_most_bits(self.request.quantizations))
        return llama_command(program, file, length)


def _most_bits(quantizations: Sequence[Quantization]) -> Quantization:
    """Return the type of the file that is tested: that which rounds least."""
    order = [Quantization.F32, Quantization.BF16, Quantization.F16, Quantization.Q8_0]
    return next((one for one in order if one in quantizations), quantizations[0])
