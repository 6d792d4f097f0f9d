"""The forms of an artifact: what is asked for, and where each lies in the run's storage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_api.messages import ExportForm, MethodType
from finetune_api.v1alpha1.run_specs import ExportSpec


@dataclass(frozen=True)
class ExportRequest:
    """What an export makes.

    Attributes:
        dtype: data type of merged weights; None = as in the files of the base model.
        named: whether the job names forms. Otherwise the result has no field that operators up to 0.1.0 would refuse.
        signing_key: path of the private key to sign with; None = no signature.
    """

    forms: tuple[ExportForm, ...]
    dtype: str | None = None
    named: bool = True
    signing_key: Path | None = None

    @classmethod
    def of(cls, spec: ExportSpec, method: MethodType) -> "ExportRequest":
        """Return what a job asks for."""
        dtype = spec.dtype if method is not MethodType.FULL else None
        return cls(spec.wanted(method), dtype, named=bool(spec.forms or spec.merge))

    @classmethod
    def by_default(cls, method: MethodType) -> "ExportRequest":
        """Return what a job gets that asks for nothing."""
        return cls.of(ExportSpec(), method)


@dataclass(frozen=True)
class FormFiles:
    """One form and its place.

    Attributes:
        kind: what loads it.
        name: of its folder.
        merges: whether an adapter is merged into its base model; full fine-tuning trains the model itself.
    """

    form: ExportForm
    kind: Literal["adapter", "model"]
    name: str
    merges: bool

    @classmethod
    def of(cls, form: ExportForm, method: MethodType) -> "FormFiles":
        """Return a form of what a method has trained."""
        merges = form is ExportForm.MERGED and method is not MethodType.FULL
        return cls(form, "adapter" if form is ExportForm.ADAPTER else "model", form.folder(method), merges)

    def prefix(self, run: str) -> str:
        """Return the key prefix of its files, with the trailing slash."""
        return f"{run}artifacts/{self.name}/"
