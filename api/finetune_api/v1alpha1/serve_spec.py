"""`spec.export.serveTest`: the exported model answers on a real server as it does in transformers."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from finetune_api.messages import Task
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1.given import Given, has, part
from finetune_api.v1alpha1.markers import ClusterOnly, KeepsData, Supported
from finetune_api.v1alpha1.pod_resources import Resources
from finetune_api.v1alpha1.rule import Rule
from finetune_api.v1alpha1.spec_base import Kubernetes, Text, shown


class ServeTestSpec(Kubernetes):
    """How the exported model is tested on a server: vLLM, or llama.cpp for the form gguf. The server and transformers
    answer the same prompts greedily. The condition Served has the outcome; the job succeeds either way."""

    prompts: Annotated[Annotated[list[Text], Field(max_length=50)], Supported(), KeepsData()] = Field(
        default_factory=list
    )
    """Prompts to answer; omitted = prompts of the eval split."""
    rows: Annotated[Annotated[int, Field(ge=1, le=1000)] | None, Supported(), KeepsData()] = None
    """Number of rows of the eval split, if prompts is omitted; omitted = 8."""
    max_new_tokens: Annotated[Annotated[int, Field(ge=1, le=4096)] | None, Supported(), KeepsData()] = None
    """Maximum length of an answer in tokens; omitted = 32."""
    agreement: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Supported(), KeepsData()] = None
    """Share of the tokens of transformers that the server must write as well; omitted = 0.9. After its first other
    token nothing of an answer counts. Weights of 16 bits are rounded differently by each of the two, so that 1 is often
    too strict."""
    image: Annotated[
        Annotated[str, Field(min_length=1, max_length=1024)] | None, Supported(), KeepsData(), ClusterOnly()
    ] = None
    """Image with a shell and with vLLM's program `vllm`, or llama.cpp's `llama-server` for the form gguf. A container
    of it runs beside the export, without any key; omitted = the servers in the image of the export."""
    resources: Annotated[Resources | None, ClusterOnly()] = None
    """Resources of that container, such as {limits: {nvidia.com/gpu: 1}}; requires image."""


def _without_prompts(spec: Given) -> str | None:
    test, dataset = part(part(spec, "export"), "serveTest"), spec.get("dataset")
    if not has(part(spec, "export"), "serveTest") or test.get("prompts"):
        return None
    if not isinstance(dataset, Mapping) or has(dataset, "eval"):
        return None
    return "has no prompts, and there is no eval split"


def _without_image(test: Given) -> str | None:
    return "is given, but image is not" if part(test, "resources") and not has(test, "image") else None


def _writes_nothing(spec: Given) -> str | None:
    task = spec.get("task")
    if task not in list(Task) or not has(part(spec, "export"), "serveTest"):
        return None
    known = spec_of(Task(task))
    if known.writes and known.continues:
        return None
    return f"is given, but the task is {shown(task)}, whose model does not continue a text"


SERVE_RULES: tuple[Rule, ...] = (
    Rule(
        at=("spec", "export", "serveTest"),
        field="resources",
        code="NeedsOther",
        broken=_without_image,
        cure="add image beside it, or set spec.export.resources",
        cel="!has(self.resources) || has(self.image)",
        says="resources requires image",
    ),
    Rule(
        at=("spec",),
        field="export.serveTest",
        code="NeedsOther",
        broken=_without_prompts,
        cure="add prompts to it, or set spec.dataset.eval to a file or to {split: 0.05}",
        cel=None,
        says="export.serveTest requires prompts, or dataset.eval",
    ),
    Rule(
        at=("spec",),
        field="export.serveTest",
        code="NeedsOther",
        broken=_writes_nothing,
        cure="leave it out",
        cel=None,
        says="export.serveTest requires a task whose model writes text after a prompt",
    ),
)
