"""The weights and the tokenizer of an artifact whose adapter is merged into its base model."""

from collections.abc import Callable
from pathlib import Path

from finetune_api.messages import ProblemType
from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.export.artifact_files import ExportSource, add_tokenizer
from finetune_trainer.model.files import CONFIG
from finetune_trainer.process.lean_imports import QUANTIZERS, imports_without, lean_model_imports
from finetune_trainer.storage import download_files


def write_merged(source: ExportSource, dtype: str | None, folder: Path, report: Callable[[str], None]) -> None:
    """Merge the checkpoint's adapter into the base model.

    Args:
        report: called with a line for about every tenth of the weights.

    Raises:
        StateError: the adapter cannot be merged.
        StorageError: the base model cannot be read.
    """
    import torch  # here, so that an export without a merge does not wait for these imports

    with lean_model_imports():
        from transformers import AutoTokenizer

        from finetune_trainer.export.merging.merge import MergeInputs, merge_adapter

    plan = source.plan
    files = source.base_manifest().files
    wanted = [entry for entry in files if entry.path == CONFIG or entry.path.endswith(".safetensors")]
    report(f"merged: reads the base model, {sum(entry.size for entry in wanted) / 1e9:.1f} GB")
    download_files(source.store, plan.model.prefix, wanted, source.base)
    folder.mkdir(parents=True)
    add_tokenizer(source, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = _settings(plan)
    if spec_of(plan.task).labelled:  # a decoder classifies a row at its last token that is not padding
        pad = tokenizer.pad_token_id
        settings["pad_token_id"] = tokenizer.eos_token_id if pad is None else pad
    inputs = MergeInputs(
        source.base,
        source.checkpoint,
        spec_of(plan.task).auto_class,
        settings,
        len(tokenizer) if plan.new_tokens else 0,
        getattr(torch, dtype) if dtype else None,
    )
    with imports_without(*QUANTIZERS):
        merge_adapter(inputs, folder, report)


def _settings(plan: Plan) -> dict[str, object]:
    """Return what the task adds to the base model's configuration."""
    if not spec_of(plan.task).named:
        return {}
    settings: dict[str, object] = {"num_labels": len(plan.dataset.labels) or 1}
    if plan.dataset.problem_type not in (None, ProblemType.SINGLE_LABEL):
        settings["problem_type"] = str(plan.dataset.problem_type)
    return settings
