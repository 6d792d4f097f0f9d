"""A job from its spec to its artifact without agents: prepared, trained on the bench, committed as an agent commits it,
exported. Each part is the real one."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import torch

from finetune_api.contract import ExitCode, File, checkpoint_name, dataset_prefix, run_prefix
from finetune_api.messages import CheckpointInfo, Manifest
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.export.stage import export
from finetune_trainer.prepare.prepare_stage import prepare
from finetune_trainer.storage import FolderStore, download_tree, hash_file
from tests.local.harness import Bench, Run
from tests.support.prepared import plain

RUN = run_prefix("default", "job", "uid")


@dataclass(frozen=True)
class Journey:
    """What became of a job: its plan, the run, and folders with what it read and made."""

    plan: Plan
    run: Run
    model: Path
    dataset: Path
    adapter: Path | None
    work: Path
    artifact: Path

    @property
    def eval_loss(self) -> float:
        """As the run reported it, at its end."""
        return self.run.evaluations()[-1]["eval_loss"]


def job_of(base: Path, train: Path, storage: Path, **spec: Any) -> FineTuneJob:
    """A LoRA job on two ranks; parts of its spec replaced, parts of `model`, `dataset` and `training` added."""
    body: dict[str, Any] = {
        "model": {"uri": f"file://{base}"} | spec.pop("model", {}),
        "dataset": {"train": f"file://{train}", "eval": {"split": 0.2}} | spec.pop("dataset", {}),
        "method": {"type": "lora"},
        "training": {"max_steps": 6, "global_batch_size": 8, "learning_rate": 5e-3} | spec.pop("training", {}),
        "nodes": 2,
        "storage": {"uri": f"file://{storage}"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "job"}}
    return FineTuneJob.model_validate_json(json.dumps(head | {"spec": body | spec}))


def travel(job: FineTuneJob, bench: Bench, folder: Path) -> Journey:
    """All of it; `folder` is the job's own, its storage that of its spec."""
    store = FolderStore(Path(job.spec.storage.uri.removeprefix("file://")))
    plan = prepare(job, store, "uid", folder / "prepare", os.environ, lambda line: None).plan
    inputs = {"model": plan.model.prefix, "dataset": dataset_prefix(plan.dataset.sha256)}
    if plan.adapter:
        inputs["adapter"] = plan.adapter.prefix
    for name, prefix in inputs.items():
        download_tree(store, prefix, folder / name)
    for split in ("train", "eval"):
        plain(folder / "dataset", split)
    start = folder / "adapter" if plan.adapter else None
    run = bench.run(plan, folder / "model", folder / "dataset", folder / "run", adapter=start)
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs
    _commit(store, plan, folder / "run" / "node-0" / checkpoint_name(plan.schedule.max_steps, 1), run)
    made = export(plan, store, RUN, folder / "export", report=lambda line: None).artifacts[0]
    download_tree(store, f"{RUN}artifacts/{made.kind}/", folder / "artifact")
    return Journey(plan, run, folder / "model", folder / "dataset", start, folder / "run", folder / "artifact")


def texts(folder: Path) -> Path:
    """Sixty lines of text that can be learnt."""
    path = folder / "texts.jsonl"
    lines = [f"<|tool|>add {i} and {i + 1}<|call|>The answer is {2 * i + 1}." for i in range(60)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def token_loss(model: torch.nn.Module, rows: Path) -> float:
    """Mean loss per trained token of a causal language model, row by row, as anybody would compute it."""
    total, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for row in pa.ipc.open_file(pa.memory_map(str(rows))).read_all().to_pylist():
            labels = torch.tensor(row["labels"])[1:]
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            tokens += int((labels != -100).sum())
    return total / tokens


def _commit(store: FolderStore, plan: Plan, share: Path, run: Run) -> None:
    """The last checkpoint, of rank 0 alone: export takes no more."""
    prefix = f"{RUN}checkpoints/{share.name}/"
    files = []
    for path in (path for path in share.rglob("*") if path.is_file()):
        key = f"node-0/{path.relative_to(share).as_posix()}"
        store.put_file(prefix + key, path)
        files.append(hash_file(path).model_copy(update={"path": key}))
    info = CheckpointInfo(
        step=plan.schedule.max_steps,
        generation=1,
        nodes=plan.layout.nodes,
        processes_per_node=plan.layout.processes_per_node,
        zero_stage=plan.layout.zero_stage,
        samples=plan.schedule.max_steps * plan.layout.global_batch,
        metrics=run.evaluations()[-1] if run.evaluations() else {},
    )
    manifest = Manifest(
        kind="checkpoint", files=tuple(files), created="2026-01-01T00:00:00+00:00", info=info.model_dump()
    )
    store.put(prefix + File.MANIFEST, manifest.to_json().encode())
