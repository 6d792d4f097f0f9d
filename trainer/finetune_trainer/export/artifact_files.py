"""The files of an artifact beside its weights: tokenizer, chat template, labels, endings, model card."""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.contract import dataset_prefix
from finetune_api.energy import Energy
from finetune_api.errors import Problem
from finetune_api.messages import CheckpointInfo, FileEntry, Manifest
from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.evaluations.stored import StoredEvaluation
from finetune_trainer.export.card import card, installed_versions
from finetune_trainer.export.ending import end_answers
from finetune_trainer.export.layout import CARD, base_of, mend
from finetune_trainer.export.serving_files import ServingPlace, add_serving
from finetune_trainer.export.vectors import describe_vectors
from finetune_trainer.model.files import CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER_FILES, parse_json
from finetune_trainer.serving.serving_manifests import NO_ACCESS, ServingAccess
from finetune_trainer.storage import NotFoundError, ObjectStore, download_files, read_manifest


@dataclass(frozen=True)
class ExportSource:
    """What artifacts are made from.

    Attributes:
        info: of the checkpoint.
        checkpoint: folder of its weights.
        job: name of the job.
        access: what a server needs to read the artifacts.
        energy: of the run; None = not measured.
    """

    plan: Plan
    store: ObjectStore
    info: CheckpointInfo
    evaluation: StoredEvaluation
    checkpoint: Path
    job: str = "model"
    access: ServingAccess = NO_ACCESS
    energy: Energy | None = None

    @property
    def base(self) -> Path:
        """The folder for the base model's files, which merging and every check share; the export removes it."""
        return self.checkpoint.with_name("base")

    def base_manifest(self) -> Manifest:
        """Return the list of the base model's files.

        Raises:
            NotFoundError: the mirrored base model is missing.
        """
        manifest = read_manifest(self.store, self.plan.model.prefix)
        if manifest is None:
            raise NotFoundError(
                Problem(
                    code="NotCommitted",
                    field="spec.storage.uri",
                    message=f"the mirrored base model {self.plan.model.prefix} is missing below {self.store.uri}",
                    cure="run the job again: its prepare stage mirrors the model",
                )
            )
        return manifest


def add_files(source: ExportSource, folder: Path, prefix: str, *, merged: bool) -> None:
    """Add the files that a user needs beside the weights.

    Args:
        prefix: of the artifact's keys in the storage.
        merged: whether the weights are those of an adapter and its base model.
    """
    plan, store = source.plan, source.store
    of_dataset = add_tokenizer(source, folder)
    base = base_of(plan.model, store)
    mend(folder, plan, base, merged=merged)
    if plan.embedding:
        describe_vectors(folder, plan.embedding)
    end_answers(folder, plan, parse_json(CONFIG, store.get(f"{plan.model.prefix}{CONFIG}")))
    chat = any(entry.path == CHAT_TEMPLATE for entry in of_dataset)  # prepare keeps it for conversations only
    info, versions = source.info, installed_versions()
    uri, mirror = (f"{store.uri}/{one}".rstrip("/") for one in (prefix, plan.model.prefix))
    serving = add_serving(folder, plan, base, ServingPlace(source.job, uri, mirror, source.access), merged=merged)
    text = card(
        plan,
        base,
        info.step,
        info.metrics,
        versions,
        source.evaluation,
        chat=chat,
        merged=merged,
        serving=serving,
        energy=source.energy,
    )
    (folder / CARD).write_text(text, "utf-8")


def add_tokenizer(source: ExportSource, folder: Path) -> list[FileEntry]:
    """Download the tokenizer, and for writers the settings of generation. Return the files that came from the data."""
    plan, store = source.plan, source.store
    download_files(store, plan.model.prefix, _from_base(source, folder), folder)
    of_dataset = _from_dataset(plan, store)
    download_files(store, dataset_prefix(plan.dataset.sha256), of_dataset, folder)
    return of_dataset


def _from_base(source: ExportSource, folder: Path) -> list[FileEntry]:
    """Return the files of the base model that training does not change and a checkpoint lacks."""
    plan = source.plan
    tokenizer = {CHAT_TEMPLATE} if plan.new_tokens else TOKENIZER_FILES
    wanted = tokenizer | ({GENERATION_CONFIG} if spec_of(plan.task).writes else set())
    files = source.base_manifest().files
    return [entry for entry in files if entry.path in wanted and not (folder / entry.path).exists()]


def _from_dataset(plan: Plan, store: ObjectStore) -> list[FileEntry]:
    """Return the files of the data set that replace those of the base model: the chat template that the data was
    tokenised with, and with new tokens the tokenizer."""
    manifest = read_manifest(store, dataset_prefix(plan.dataset.sha256))
    wanted = TOKENIZER_FILES if plan.new_tokens else {CHAT_TEMPLATE}
    return [entry for entry in manifest.files if entry.path in wanted] if manifest else []
