"""annex.md: a draft of the documentation that Annexes XI and XII of the EU AI Act (Regulation 2024/1689) ask of a
general-purpose model. Facts of the run are filled in. A mark stands where a person must write.
"""

from collections.abc import Mapping

from finetune_api.energy import Energy
from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.export.energy_figures import NOT_MEASURED, energy_text
from finetune_trainer.export.run_report.shown_values import shown_text

MARK = "**[A person must write this]**"
ENERGY = "measured or estimated energy"


def annex(
    plan: Plan,
    *,
    step: int,
    metrics: Mapping[str, float],
    versions: Mapping[str, str],
    created: str,
    energy: Energy | None = None,
) -> str:
    """Return the draft, Markdown.

    Args:
        step, metrics: of the exported checkpoint.
        versions: of the software.
        created: ISO 8601.
        energy: of the run; None = not measured.
    """
    parts = [
        "# Technical documentation: a draft",
        "This draft follows Annex XI, section 1, and Annex XII of Regulation (EU) 2024/1689. It is not legal advice. "
        "Whether the regulation applies to this model, and to whom, a person must decide. A provider who changes a "
        "model documents the change (recital 109): the documentation of the base model remains the base.",
        "## 1. General description",
        _items(_general(plan, created)),
        "## 2. How the model was made (Annex XI, section 1, point 2)",
        _items(_making(plan, step, metrics, energy)),
        "## 3. For those who build upon the model (Annex XII)",
        _items(_integration(plan, versions)),
    ]
    return "\n\n".join(parts) + "\n"


def _general(plan: Plan, created: str) -> list[tuple[str, str]]:
    model = plan.model
    return [
        ("Tasks that the model is intended for", f"trained {spec_of(plan.task).purpose}. {MARK}: the intended use."),
        ("Acceptable use", MARK),
        ("Date of release and ways of distribution", f"made on {created[:10]}. {MARK}: release and distribution."),
        ("Architecture", f"{model.model_type or 'as the base model'}, {model.parameters:,} parameters"),
        ("Base model", f"{model.name}, commit {model.commit}, from {shown_text(model.source)}"),
        ("Inputs and outputs", f"text of at most {plan.max_length:,} tokens. {MARK}: formats and languages."),
        ("Licence", f"{MARK}: licence of this model, in line with those of the base model and of the data."),
    ]


def _making(plan: Plan, step: int, metrics: Mapping[str, float], energy: Energy | None) -> list[tuple[str, str]]:
    schedule, data, prediction = plan.schedule, plan.dataset, plan.prediction
    position = step / schedule.max_steps if schedule.max_steps else 0.0
    samples = step * plan.layout.global_batch
    tokens = data.train.tokens * samples / data.train.rows if data.train.rows else 0.0
    flops = prediction.flops_per_token * tokens
    scores = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    evaluated = f"{data.eval.rows:,} held-out rows" if data.eval else "none"
    return [
        ("Method", f"{plan.method}, {schedule.epochs:g} epochs planned, {step:,} of {schedule.max_steps:,} steps"),
        (
            "Choices of the training",
            f"learning rate {schedule.learning_rate:g} ({schedule.lr_scheduler_type}), {plan.layout.global_batch:,} "
            f"rows a step, seed {schedule.seed}. Every choice and its reason are in plan.json of the run.",
        ),
        ("What was optimised", f"the checkpoint was chosen by {plan.evaluation.best_metric}. {MARK}: why."),
        (
            "Training data",
            f"{data.train.rows:,} rows, {data.train.tokens:,} tokens, sha256 {data.sha256}; {data.skipped_rows:,} rows "
            f"were invalid and left out. {MARK}: origin, how the data was obtained and selected, rights, languages.",
        ),
        ("Evaluation data", f"{evaluated}. {MARK}: origin and selection."),
        (
            "Unsuitable data and biases",
            "the report on the data (dataset-report.html of the run) lists copies, leakage, personal data, labels and "
            f"mentions of groups of people. {MARK}: what was done about its findings.",
        ),
        ("Evaluation", f"{scores or 'none'}. {MARK}: tests with people, and for misuse."),
        (
            "Operations of the training",
            f"{flops:.3g} FLOPs up to step {step:,} ({position:.0%} of the run), by the plan's formula"
            if flops
            else NOT_MEASURED,
        ),
        ("Hardware", f"{plan.world_size:,} ranks on {plan.layout.nodes:,} nodes. {MARK}: kind and place."),
        ("Energy", f"{energy_text(energy)}. {MARK}: {'energy of what was not measured' if energy else ENERGY}."),
    ]


def _integration(plan: Plan, versions: Mapping[str, str]) -> list[tuple[str, str]]:
    software = ", ".join(f"{name} {value}" for name, value in versions.items())
    return [
        ("Software", software or NOT_MEASURED),
        ("How it is loaded", "the code in README.md of the artifact"),
        ("Largest input", f"{plan.model.max_positions or plan.max_length:,} tokens; trained with {plan.max_length:,}"),
        ("Hardware and systems that it works with", MARK),
        ("Limits that are known", MARK),
    ]


def _items(items: list[tuple[str, str]]) -> str:
    return "\n".join(f"* **{name}**: {text}" for name, text in items)
