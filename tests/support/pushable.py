"""A committed artifact of a run, small and made without torch, for tests of pushes."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.contract import File, run_prefix
from finetune_api.messages import Artifact, DatasetFacts, ExportForm, MethodType, ModelFacts, SplitFacts, Task
from finetune_api.plan import Plan
from finetune_api.v1alpha1.push_spec import PushSpec
from finetune_trainer.export.push.pushing import Pusher
from finetune_trainer.storage import FolderStore, upload_tree

RUN = run_prefix("default", "job", "uid-1")
MIRROR = "models/tiny/abc/"
LARGE = 200_000  # bytes of the weights
CARD = "---\ntags:\n- finetune-operator\n---\n# tiny, fine-tuned\n"


def small_plan() -> Plan:
    """Return a plan of a LoRA run."""
    split = SplitFacts(rows=100, tokens=1000, trained_tokens=100, longest=40)
    model = ModelFacts(
        name="team/tiny", commit="abc", prefix=MIRROR, source="team/tiny", model_type="llama", parameters=7_100_000,
        size_bytes=1,
    )  # fmt: skip
    values: dict[str, Any] = {
        "task": Task.CAUSAL_LM, "method": MethodType.LORA, "model": model,
        "dataset": DatasetFacts(sha256="d" * 64, train=split), "nodes": 1, "processes_per_node": 1, "zero_stage": 0,
        "micro_batch": 4, "gradient_accumulation": 1, "global_batch": 4, "max_length": 48, "epochs": 1.0,
        "max_steps": 20, "learning_rate": 1e-3, "warmup_steps": 2, "lr_scheduler_type": "linear", "seed": 1,
        "eval_every_steps": 10, "checkpoint_every_steps": 10, "keep_last": 3, "best_metric": "eval_loss",
        "greater_is_better": False, "lora": {"r": 4},
    }  # fmt: skip
    return Plan(**values)


@dataclass
class Pushable:
    """A run whose merged artifact is in storage, with two files of weights, a card and evidence."""

    folder: Path
    store: FolderStore
    plan: Plan
    reports: list[str] = field(default_factory=list)

    @classmethod
    def made(cls, folder: Path, weights: int = LARGE) -> "Pushable":
        run = cls(folder, FolderStore(folder / "storage"), small_plan())
        base = folder / "base"
        base.mkdir(parents=True)
        (base / "config.json").write_text("{}")
        upload_tree(run.store, base, MIRROR, "model")
        run.export(20, weights)
        return run

    @property
    def prefix(self) -> str:
        return f"{RUN}artifacts/merged/"

    @property
    def raw(self) -> bytes:
        """MANIFEST.json of the artifact."""
        return self.store.get(self.prefix + File.MANIFEST)

    def export(self, step: int, weights: int = LARGE) -> None:
        """Commit the artifact of a step; only the second file of weights and the lineage differ from another step's."""
        for key in [entry.key for entry in self.store.list(self.prefix)]:
            self.store.delete([key])
        files = self.folder / f"artifact-{step}"
        (files / "evidence").mkdir(parents=True)
        for name, content in {
            "README.md": CARD.encode(),
            "config.json": b'{"model_type": "llama"}',
            "model-00001-of-00002.safetensors": hashlib.shake_128(b"first").digest(weights),
            "model-00002-of-00002.safetensors": hashlib.shake_128(b"%d" % step).digest(weights // 2),
            "tokenizer.json": b'{"model": {}}' * 300,
            "evidence/annex.md": b"# Technical documentation: a draft\n" * 100,
            "evidence/lineage.json": b'{"step": %d}' % step,
        }.items():
            (files / name).write_bytes(content)
        upload_tree(self.store, files, self.prefix, "artifact", {"step": step, "dtype": "bfloat16", "form": "merged"})

    def push(self, pushes: list[dict[str, Any]], environ: dict[str, str], seconds: float = 5.0) -> Artifact:
        """Push the artifact as the export stage does, and return its description."""
        made = Artifact(kind="model", form=ExportForm.MERGED, uri=f"{self.store.uri}/{self.prefix}", step=20)
        pusher = Pusher(self.plan, self.store, RUN, self.folder / "work/push", environ, self.reports.append, seconds)
        specs = [PushSpec.model_validate(one) for one in pushes]
        return pusher.push(specs, {ExportForm.MERGED: made})[ExportForm.MERGED]

    def names(self) -> set[str]:
        """Return the paths of the artifact's files, with MANIFEST.json."""
        return {entry.key.removeprefix(self.prefix) for entry in self.store.list(self.prefix)}

    def content(self, name: str) -> bytes:
        return self.store.get(self.prefix + name)
