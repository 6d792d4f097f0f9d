"""A run with checkpoints as peft and transformers save them, committed as the agent does, for tests of export."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from finetune_api.contract import File, checkpoint_name, run_prefix
from finetune_api.messages import (
    CheckpointInfo,
    DatasetFacts,
    FileEntry,
    Manifest,
    MethodType,
    ModelFacts,
    SplitFacts,
    Task,
)
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.export.stage import export
from finetune_trainer.storage import FolderStore, download_tree, hash_file, upload_tree

RUN = run_prefix("default", "job", "uid-1")
LABELS = ("noun", "verb", "ümlaut")
MIRROR = "models/tiny/abc/"
SCRATCH = "/scratch/of/the/training/node"
TEXT = "Return a new list containing all items"


def checkpoint_manifest(step: int, metrics: dict[str, float], files: tuple[FileEntry, ...] = ()) -> Manifest:
    info = CheckpointInfo(
        step=step, generation=1, nodes=2, processes_per_node=1, zero_stage=2, samples=step * 8, metrics=metrics
    )
    return Manifest(kind="checkpoint", files=files, created="2026-01-01T00:00:00+00:00", info=info.model_dump())


@dataclass
class Run:
    """The storage of a run whose base model is mirrored and whose checkpoints are committed."""

    store: FolderStore
    plan: Plan
    base: Path
    work: Path
    reports: list[str] = field(default_factory=list)

    @classmethod
    def with_adapter(cls, base: Path, folder: Path) -> "Run":
        """A run of a causal model that has committed one adapter, at step 20."""
        made = cls.of(base, folder, Task.CAUSAL_LM, MethodType.LORA)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        made.commit(20, scrambled(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)), eval_loss=0.5)
        return made

    @classmethod
    def of(cls, base: Path, folder: Path, task: Task, method: MethodType, **changes: Any) -> "Run":
        store = FolderStore(folder / "storage")
        upload_tree(store, base, MIRROR, "model")
        split = SplitFacts(rows=100, tokens=1000, trained_tokens=100, longest=40)
        labels = LABELS if task is Task.CLASSIFICATION else ()
        values: dict[str, Any] = {
            "task": task,
            "method": method,
            "model": ModelFacts(
                name="tiny", commit="abc", prefix=MIRROR, source="file://somewhere/tiny", model_type="", parameters=1,
                size_bytes=1,
            ),
            "dataset": DatasetFacts(sha256="d" * 64, train=split, eval=split, labels=labels),
            "nodes": 2, "processes_per_node": 1, "zero_stage": 2, "micro_batch": 4, "gradient_accumulation": 1,
            "global_batch": 8, "max_length": 48, "epochs": 1.0, "max_steps": 20, "learning_rate": 1e-3,
            "warmup_steps": 2, "lr_scheduler_type": "linear", "seed": 1, "eval_every_steps": 10,
            "checkpoint_every_steps": 10, "keep_last": 3, "best_metric": "eval_loss", "greater_is_better": False,
            "lora": {"r": 4} if method is MethodType.LORA else {},
        }  # fmt: skip
        plan = Plan(**{**values, **changes})
        store.put(RUN + File.PLAN, plan.to_json().encode())
        return cls(store, plan, base, folder / "work")

    def commit(self, step: int, model: torch.nn.Module, **metrics: float) -> None:
        """What rank 0 saves, plus what only training needs, committed with a manifest."""
        folder = self.work / "worker" / checkpoint_name(step)
        assert isinstance(model, PreTrainedModel | PeftModel)
        model.save_pretrained(folder / "node-0")
        if self.plan.method is MethodType.LORA:
            config = json.loads((folder / "node-0/adapter_config.json").read_text())
            config["base_model_name_or_path"] = SCRATCH
            (folder / "node-0/adapter_config.json").write_text(json.dumps(config))
        for rank in (0, 1):
            shard = folder / f"node-{rank}" / f"global_step{step}" / f"zero_rank_{rank}_optim_states.pt"
            shard.parent.mkdir(parents=True, exist_ok=True)
            shard.write_bytes(b"optimizer state")
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = tuple(
            hash_file(path).model_copy(update={"path": path.relative_to(folder).as_posix()}) for path in paths
        )
        prefix = f"{RUN}checkpoints/{checkpoint_name(step)}/"
        for path in paths:
            self.store.put_file(prefix + path.relative_to(folder).as_posix(), path)
        self.store.put(prefix + File.MANIFEST, checkpoint_manifest(step, metrics, files).to_json().encode())

    def export(self, request: ExportRequest | None = None) -> StageResult:
        return export(self.plan, self.store, RUN, self.work / "export", request, self.reports.append)

    def artifact(self, kind: str) -> Path:
        """The artifact as a user gets it: fetched whole, verified by its manifest."""
        folder = self.work / "fetched"
        download_tree(self.store, f"{RUN}artifacts/{kind}/", folder)
        return folder

    def mirror(self) -> str:
        return f"{self.store.uri}/{MIRROR}".removeprefix("file://").rstrip("/")


def scrambled(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Moves every trainable weight, so that a weight lost on the way changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def lora_classifier(base: Path, seed: int = 0) -> torch.nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS))
    config = LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier", "pooler"]
    )
    return scrambled(get_peft_model(model, config), seed)


def logits(model: torch.nn.Module, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt")).logits  # type: ignore[no-any-return]


def same(seen: torch.Tensor, expected: torch.Tensor) -> None:
    # to the bit only where memory is aligned alike, and weights mapped from a file need not be
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


def upload_again(run: Run, step: int) -> None:
    folder = run.work / "worker" / checkpoint_name(step)
    prefix = f"{RUN}checkpoints/{checkpoint_name(step)}/"
    run.store.delete([entry.key for entry in run.store.list(prefix)])
    info = checkpoint_manifest(step, {}).info
    upload_tree(run.store, folder, prefix, "checkpoint", info)
