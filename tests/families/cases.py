"""The cases: what `make test` runs of them, one per family in turn, and the whole matrix."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.messages import MethodType, ProblemType, Task
from finetune_trainer.model.families import FAMILIES

METHODS = (MethodType.FULL, MethodType.LORA)
STAGES = (0, 1, 2, 3)
ELSEWHERE = frozenset({Task.PREFERENCE})  # tests/local/test_preference.py runs each loss with each layout
OTHER_PROBLEMS = (ProblemType.MULTI_LABEL, ProblemType.REGRESSION)


@dataclass(frozen=True)
class Case:
    """A family with a task, a method and a ZeRO stage, over two ranks."""

    family: str
    task: Task
    method: MethodType
    stage: int
    problem: ProblemType = ProblemType.SINGLE_LABEL

    def __str__(self) -> str:
        return f"{self.family}-{self.kind}-{self.method}-zero{self.stage}".replace(" ", "-")

    @property
    def kind(self) -> str:
        """The task as the page names it: `classification (regression)`."""
        if self.problem is ProblemType.SINGLE_LABEL:
            return str(self.task)
        return f"{self.task} ({'multi-label' if self.problem is ProblemType.MULTI_LABEL else 'regression'})"


def each_family() -> list[Case]:
    """One case per family; tasks, methods and stages take turns, so that each is there with several families."""
    single, several, number = ProblemType.SINGLE_LABEL, *OTHER_PROBLEMS
    chosen = {
        "llama": (Task.CLASSIFICATION, MethodType.LORA, 3, several),
        "gpt2": (Task.CAUSAL_LM, MethodType.LORA, 2, single),
        "gpt_neox": (Task.CLASSIFICATION, MethodType.FULL, 1, number),
        "mistral": (Task.CAUSAL_LM, MethodType.LORA, 3, single),
        "qwen2": (Task.EMBEDDING, MethodType.LORA, 3, single),
        "qwen3": (Task.CAUSAL_LM, MethodType.FULL, 3, single),
        "gemma": (Task.CAUSAL_LM, MethodType.FULL, 2, single),
        "phi": (Task.CLASSIFICATION, MethodType.LORA, 0, single),
        "qwen3_moe": (Task.CAUSAL_LM, MethodType.LORA, 3, single),
        "bert": (Task.MASKED_LM, MethodType.LORA, 2, single),
        "roberta": (Task.CLASSIFICATION, MethodType.LORA, 1, number),
        "distilbert": (Task.TOKEN_CLASSIFICATION, MethodType.LORA, 2, single),
        "modernbert": (Task.MASKED_LM, MethodType.FULL, 3, single),
        "t5": (Task.SEQ2SEQ, MethodType.LORA, 3, single),
        "bart": (Task.SEQ2SEQ, MethodType.FULL, 3, single),
    }
    return [Case(family, task, method, stage, problem) for family, (task, method, stage, problem) in chosen.items()]


def matrix() -> Iterator[Case]:
    """All of them."""
    for family, one in FAMILIES.items():
        for task in (task for task in one.tasks if task not in ELSEWHERE):
            problems = [ProblemType.SINGLE_LABEL, *(OTHER_PROBLEMS if task is Task.CLASSIFICATION else ())]
            for problem in problems:
                for method in METHODS:
                    for stage in STAGES:
                        yield Case(family, task, method, stage, problem)
