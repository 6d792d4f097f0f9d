"""What serves an artifact: its manifests, and the section of its card that names them."""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.messages import MethodType
from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.export.layout import Base
from finetune_trainer.model.auto_classes import class_of
from finetune_trainer.serving.serving_manifests import KSERVE, VLLM, ServedArtifact, ServingAccess, manifests
from finetune_trainer.serving.vllm_rules import Served, of_adapter, of_model, vllm_version

HUB_FOLDER = "ARTIFACT"  # in the command of a card


@dataclass(frozen=True)
class ServingPlace:
    """Where an artifact will lie.

    Attributes:
        uri: of its folder.
        mirror: URI of the base model in the storage.
    """

    job: str
    uri: str
    mirror: str
    access: ServingAccess


def served_by_vllm(plan: Plan, *, merged: bool) -> Served:
    """Return whether vLLM serves an artifact by its rules.

    Args:
        merged: whether the adapter of the plan is merged into its base model.
    """
    name = class_of(spec_of(plan.task).auto_class, plan.model.model_type)
    if plan.method is MethodType.FULL or merged:
        return of_model(name)
    answer = of_adapter(name, plan.lora, len(plan.new_tokens))
    if answer.served and not spec_of(plan.task).writes:
        cure = "export merged weights (spec.export.forms: [merged])"
        reason = f"the base model that vLLM {vllm_version()} would load has no head for this task; {cure}"
        return Served(False, reason)
    return answer


def add_serving(folder: Path, plan: Plan, base: Base, place: ServingPlace, *, merged: bool) -> str:
    """Write the manifests into an artifact, if vLLM serves it. Return the section of the card.

    Args:
        merged: whether the adapter of the plan is merged into its base model.
    """
    answer = served_by_vllm(plan, merged=merged)
    if not answer.served:
        how = "" if answer.served is None else "There are no manifests for it. "
        return f"## Serve it\n\n{how}{_sentence(answer.reason)}\n"
    adapter = plan.method is not MethodType.FULL and not merged
    served = ServedArtifact(
        place.job,
        place.uri,
        plan.lora if adapter else None,
        (base.location if base.on_hub else place.mirror) if adapter else "",
        base.revision if adapter else None,
        pools=not spec_of(plan.task).writes,
    )
    for name, text in manifests(served, place.access).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    command = " ".join(["vllm serve", *served.command(".", "BASE" if not base.on_hub else "")])
    parts = ["## Serve it\n", f"With vLLM {vllm_version()}, in this folder:\n", f"```sh\n{command}\n```\n"]
    if adapter and not base.on_hub:
        parts.append(f"BASE is a copy of `{served.base}`.\n")
    parts.append(f"On a cluster: `{KSERVE}` for KServe, `{VLLM}` for vLLM alone. Their heads say what they need.\n")
    return "\n".join(parts)


def _sentence(reason: str) -> str:
    return f"{reason[:1].upper() if not reason.startswith('vLLM') else reason[:1]}{reason[1:]}."
