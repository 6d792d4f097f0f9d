"""README.md of an artifact: its origin, its evaluation, and the code that loads it."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from finetune_api.energy import Energy
from finetune_api.messages import MethodType, ProblemType
from finetune_api.plan import Plan, PlannedPreference
from finetune_api.preference_losses import PREFERENCE_LOSSES
from finetune_api.tasks import spec_of
from finetune_trainer.evaluations.stored import StoredEvaluation
from finetune_trainer.export.energy_figures import energy_text
from finetune_trainer.export.evaluated import evaluation_sections
from finetune_trainer.export.layout import Base
from finetune_trainer.export.run_report.shown_values import portable_text
from finetune_trainer.export.snippet import gguf_use, sentence_snippet, snippet

PACKAGES = ("finetune-operator", "torch", "transformers", "peft", "deepspeed")
NO_EVALUATION = StoredEvaluation()


def card(
    plan: Plan,
    base: Base,
    step: int,
    metrics: Mapping[str, float],
    versions: Mapping[str, str],
    evaluation: StoredEvaluation = NO_EVALUATION,
    *,
    chat: bool = False,
    merged: bool = False,
    gguf: Sequence[str] = (),
    serving: str = "",
    energy: Energy | None = None,
) -> str:
    """Return the model card, Markdown with the YAML head that the Hugging Face hub reads.

    Args:
        step: of the checkpoint.
        metrics: of its evaluation; empty if there was none.
        versions: package name -> version that made the artifact.
        evaluation: scores of each label, generated answers.
        chat: whether the model was trained on conversations.
        merged: whether the artifact is a model that the adapter was merged into.
        gguf: names of the files, if the artifact holds the model in llama.cpp's format.
        serving: the section on servers.
        energy: of the run; None = not measured.
    """
    trained = "All weights" if plan.method is MethodType.FULL else "A LoRA adapter"
    adapter = plan.method is not MethodType.FULL and not merged
    parts = [
        _head(plan, base, "peft" if adapter else "gguf" if gguf else "transformers"),
        f"# {plan.model.name}, fine-tuned\n",
        f"{trained}{', merged into the base model,' if merged else ''} after step {step} of "
        f"{plan.schedule.max_steps}, {_task(plan)}.\n",
        "## Load it\n",
        gguf_use(plan, gguf) if gguf else f"```python\n{snippet(plan, base, chat=chat, merged=merged)}```\n",
    ]
    if plan.embedding and not gguf:
        parts += ["With sentence-transformers:\n", f"```python\n{sentence_snippet()}```\n"]
    if adapter and base.location.startswith("s3://"):
        parts.append(f"First copy the base model from `{base.location}` to a folder and write its path in its place.\n")
    if serving:
        parts.append(serving)
    facts = _training(plan) | ({"energy of the run": energy_text(energy)} if energy else {})
    if metrics:
        parts += ["## Evaluation\n", f"On {_rows(plan)} held-out rows:\n", _table(metrics, ".6g")]
        parts += evaluation_sections(evaluation)
    parts += [
        "## Training\n",
        _table(facts),
        "## Made with\n",
        _table(versions),
    ]
    return "\n".join(parts)


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that affect a result; packages that are not installed are omitted."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _head(plan: Plan, base: Base, loaded_by: str) -> str:
    head = ["---"]
    if base.on_hub:
        head.append(f"base_model: {base.location}")
    compares = spec_of(plan.task).compares
    library = "sentence-transformers" if compares and loaded_by != "gguf" else loaded_by
    head.append(f"library_name: {library}")
    if pipeline := spec_of(plan.task).pipeline_tag:
        head.append(f"pipeline_tag: {pipeline}")
    tags = {"peft": ["- lora"], "gguf": ["- gguf"]}.get(loaded_by, [])
    tags = [*tags, "- sentence-transformers", "- feature-extraction"] if compares else tags
    return "\n".join([*head, "tags:", "- finetune-operator", *tags, "---", ""])


def _task(plan: Plan) -> str:
    spec = spec_of(plan.task)
    if not spec.named:
        return spec.purpose
    if plan.dataset.problem_type is ProblemType.REGRESSION:
        return "for a number (regression)"
    several = ", several a text" if plan.dataset.problem_type is ProblemType.MULTI_LABEL else ""
    return f"{spec.purpose} into {len(plan.dataset.labels)} labels{several} (`labels.json`)"


def _rows(plan: Plan) -> str:
    return f"{plan.dataset.eval.rows:,}" if plan.dataset.eval else "no"


def _training(plan: Plan) -> dict[str, object]:
    schedule, layout = plan.schedule, plan.layout
    facts: dict[str, object] = {
        "base model": plan.model.name,
        "base model's commit": plan.model.commit,
        "data, sha256": plan.dataset.sha256,
        "rows": f"{plan.dataset.train.rows:,}",
        "tokens": f"{plan.dataset.train.tokens:,}",
        "method": plan.method,
        "steps": schedule.max_steps,
        "epochs": f"{schedule.epochs:g}",
        "rows a step": layout.global_batch,
        "longest row, tokens": plan.max_length,
        "learning rate": (
            f"{schedule.learning_rate:g}, {schedule.lr_scheduler_type}, {schedule.warmup_steps} steps of warm-up"
        ),
        "seed": schedule.seed,
        "ranks": f"{plan.world_size}, ZeRO-{plan.layout.zero_stage}",
    }
    if plan.adapter:
        facts["began with the adapter"] = f"{portable_text(plan.adapter.source)}, sha256 {plan.adapter.commit}"
    if plan.loss.class_weights:
        facts["weights of the labels"] = ", ".join(f"{weight:.4g}" for weight in plan.loss.class_weights)
    if plan.loss.label_smoothing:
        facts["label smoothing"] = plan.loss.label_smoothing
    if plan.freeze:
        facts["not trained"] = json.dumps(plan.freeze, ensure_ascii=False)
    if plan.preference:
        facts |= _preference(plan.preference)
    if plan.embedding:
        facts["pooling"] = f"{plan.embedding.pooling}, normalised"
        facts["scale of the similarities"] = f"{plan.embedding.scale:g}"
        facts["rows compared at once"] = layout.micro_batch * plan.world_size
    if plan.embedding and plan.embedding.dims:
        facts["sizes of the vectors (matryoshka)"] = json.dumps(plan.embedding.dims)
    if plan.new_tokens:
        facts["new tokens"] = json.dumps(plan.new_tokens, ensure_ascii=False)
    if plan.method is MethodType.QLORA:
        facts["base model's weights in training"] = "4 bits (NF4, bitsandbytes, constants quantized twice)"
    return facts | {name: json.dumps(value) for name, value in (plan.lora | plan.engine.training).items()}


def _preference(loss: PlannedPreference) -> dict[str, object]:
    """Return the loss of preference tuning, with the parameters that differ from their neutral value."""
    neutral = {"label_smoothing": 0.0, "gamma": 0.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    values = {name: getattr(loss, name) for name in neutral}
    changed = {name: f"{value:g}" for name, value in values.items() if value != neutral[name]}
    title = PREFERENCE_LOSSES[loss.loss_type].title
    return {"loss": f"{loss.loss_type}: {title}", "beta": f"{loss.beta:g}", **changed}


def _table(values: Mapping[str, object], numbers: str = "") -> str:
    rows = [f"| {name} | {value:{numbers}} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows, ""])
