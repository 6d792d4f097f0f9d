"""The forms of an artifact: what is asked for, and where each lies in the run's storage."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from finetune_api.contract import Env
from finetune_api.gates import SUITE_SIGN
from finetune_api.messages import ExportForm, Manifest, MethodType, Quantization
from finetune_api.v1alpha1.push_spec import PushSpec
from finetune_api.v1alpha1.run_specs import EvaluationSpec, ExportSpec
from finetune_api.v1alpha1.spec import FineTuneJobSpec
from finetune_trainer.judge.judge_question import JudgeSettings
from finetune_trainer.process.trial_circumstances import asked_of_stage
from finetune_trainer.serving.circumstances import asked_circumstances
from finetune_trainer.serving.serve_records import ServeSettings
from finetune_trainer.serving.server_commands import Kind
from finetune_trainer.serving.serving_manifests import NO_ACCESS, ServingAccess
from finetune_trainer.suites.container_suites import runnable_suites
from finetune_trainer.suites.suite_records import SuiteSettings, digest_of_suites

MEASURED = "measured"  # in the manifest of an artifact: a digest of the judgement and the suites that it holds


@dataclass(frozen=True)
class ExportRequest:
    """What an export makes.

    Attributes:
        dtype: data type of merged weights; None = as in the files of the base model.
        named: whether the job names forms. Otherwise the result has no field that operators up to 0.1.0 would refuse.
        judge: how the model is compared with its base; None = it is not.
        gates: metric -> comparison.
        signing_key: path of the private key to sign with; None = no signature.
        quantizations: types of the form gguf.
        pushes: places that get a copy.
        access: what a server needs to read the artifacts.
        serve: how artifacts are tested on a server; None = they are not.
        served_with: what the job says of the server, see `asked_circumstances`.
        suites: benchmarks that the model runs through.
        measured_with: what the job says of the stage, see `asked_of_stage`.
    """

    forms: tuple[ExportForm, ...]
    dtype: str | None = None
    named: bool = True
    judge: JudgeSettings | None = None
    gates: Mapping[str, str] = field(default_factory=dict)
    signing_key: Path | None = None
    quantizations: tuple[Quantization, ...] = (Quantization.F16,)
    pushes: tuple[PushSpec, ...] = ()
    access: ServingAccess = NO_ACCESS
    serve: ServeSettings | None = None
    served_with: str = ""
    suites: tuple[SuiteSettings, ...] = ()
    measured_with: str = ""

    @property
    def judged(self) -> str | None:
        """What the manifest of an artifact says of its judgement."""
        return self.judge.digest if self.judge else None

    @classmethod
    def of(cls, spec: ExportSpec, method: MethodType) -> "ExportRequest":
        """Return what a job asks for."""
        dtype = spec.dtype if method is not MethodType.FULL else None
        judge = JudgeSettings.of(spec.judge) if spec.judge else None
        return cls(
            spec.wanted(method),
            dtype,
            named=bool(spec.forms or spec.merge),
            judge=judge,
            gates={name: text for name, text in spec.gates.items() if judge or SUITE_SIGN in name},
            quantizations=spec.quantized(),
            pushes=tuple(spec.push),
            serve=ServeSettings.of(spec.serve_test) if spec.serve_test else None,
            served_with=asked_circumstances(spec) if spec.serve_test else "",
            measured_with=asked_of_stage(spec),
        )

    @classmethod
    def by_default(cls, method: MethodType) -> "ExportRequest":
        """Return what a job gets that asks for nothing."""
        return cls.of(ExportSpec(), method)

    @classmethod
    def recorded(cls, form: ExportForm, settings: Mapping[str, Any]) -> "ExportRequest":
        """Return what made an artifact, by the settings in its manifest, without judgement and signature."""
        quantized = tuple(Quantization(one) for one in settings.get("quantizations") or (Quantization.F16,))
        return cls((form,), settings.get("dtype"), quantizations=quantized)

    def with_suites(self, spec: EvaluationSpec, environ: Mapping[str, str] = os.environ) -> "ExportRequest":
        """Return the request with the suites of a job that run where the environment is."""
        return replace(self, suites=tuple(runnable_suites(spec.suites, environ)))

    def signed_with(self, environ: Mapping[str, str]) -> "ExportRequest":
        """Return the request with the key that an environment names; the request itself if it names none."""
        key = environ.get(Env.SIGNING_KEY)
        return replace(self, signing_key=Path(key)) if key else self

    def read_by(self, spec: FineTuneJobSpec) -> "ExportRequest":
        """Return the request with what a server needs to read the artifacts of a job."""
        return replace(self, access=ServingAccess.of(spec))

    def settings(self, form: ExportForm) -> dict[str, object]:
        """Return the settings of a form, which its manifest holds."""
        return {**self.of_weights(form), **self.of_checks}

    def of_weights(self, form: ExportForm) -> dict[str, object]:
        """Return the settings of a form on which its weights depend."""
        quantized = {"quantizations": [str(one) for one in self.quantizations]} if form is ExportForm.GGUF else {}
        return {"dtype": self.dtype, **quantized}

    @property
    def of_checks(self) -> dict[str, object]:
        """The settings of what is said of an artifact."""
        return {
            "judged": self.judged,
            "serve_test": self.serve.digest if self.serve else None,
            "suites": digest_of_suites(self.suites),
        }

    def fits(self, form: ExportForm, manifest: Manifest, measured: str) -> bool:
        """Return whether an artifact was made with these settings, and holds what was measured.

        Args:
            measured: digest of the judgement and the suites that there are now.
        """
        settings = self.settings(form)
        if MEASURED in manifest.info:  # versions up to 0.1.0 know no judgement that failed
            settings |= {MEASURED: measured}
            del settings["judged"], settings["suites"]
        return {name: manifest.info.get(name) for name in settings} == settings


@dataclass(frozen=True)
class FormFiles:
    """One form and its place.

    Attributes:
        kind: what loads it.
        name: of its folder.
        merges: whether an adapter is merged into its base model; full fine-tuning trains the model itself.
        converts: whether the model is converted to GGUF.
    """

    form: ExportForm
    kind: Literal["adapter", "model"]
    name: str
    merges: bool
    converts: bool

    @classmethod
    def of(cls, form: ExportForm, method: MethodType) -> "FormFiles":
        """Return a form of what a method has trained."""
        merges = form is not ExportForm.ADAPTER and method is not MethodType.FULL
        kind: Literal["adapter", "model"] = "adapter" if form is ExportForm.ADAPTER else "model"
        return cls(form, kind, form.folder(method), merges, form is ExportForm.GGUF)

    @property
    def server(self) -> Kind:
        """The server that tests it."""
        return "llama.cpp" if self.converts else "vLLM"

    def prefix(self, run: str) -> str:
        """Return the key prefix of its files, with the trailing slash."""
        return f"{run}artifacts/{self.name}/"

    def aside(self, run: str) -> str:
        """Return the key prefix of the list of files that are kept while the others are written again."""
        return f"{run}rewritten/{self.name}/"
