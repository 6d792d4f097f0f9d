"""What the probe is asked and what it answers, as messages between prepare and the probe's process."""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from pydantic import Field

from finetune_api.messages import Message, MethodType, Task
from finetune_api.tasks import Supervision, spec_of

# what rows of the tiny model can teach, see `tiny_model.write_rows`
TAUGHT = tuple(one for one in Supervision if one is not Supervision.PREFERENCE)


class ProbeStage(StrEnum):
    """What the tiny model goes through, in this order."""

    SHRINK = "making a tiny model of the architecture"
    POSITIONS = "reading its longest row"
    STEP = "a forward and a backward pass with the method"
    ENGINE = "training under DeepSpeed"
    RELOAD = "loading the result with transformers and PEFT alone"


class MachineFault(StrEnum):
    """What ended a probe without an answer."""

    MEMORY = "memory"
    TIME = "time"
    OTHER = "other"


class ProbeQuestion(Message):
    """An architecture, and how it is to be trained.

    Attributes:
        config: the model's `config.json`, without what says nothing of its shape.
        lora: LoraConfig names and values; empty for full fine-tuning.
        zero_stage: ZeRO stage of DeepSpeed, 0 to 3.
    """

    config: dict[str, Any]
    task: Task
    method: MethodType
    lora: dict[str, Any] = Field(default_factory=dict)
    zero_stage: int


class ProbeAnswer(Message):
    """What came of it.

    Attributes:
        failed: the stage that failed; None if all passed.
        reason: the library's last line, where a stage failed.
        fault: the machine failed and not the architecture, so this is no answer; None for an answer.
        reserved: positions that hold no token, as RoBERTa's `pad_token_id + 1`: a row is that much shorter.
        unreached: the outermost modules of which nothing that is trained got a gradient, by their names in any depth of
            the model, such as `model.vision_tower`: text does not reach them.
    """

    failed: ProbeStage | None = None
    reason: str = ""
    fault: MachineFault | None = None
    reserved: int = 0
    unreached: tuple[str, ...] = ()


def probed_as(task: Task, others: Sequence[Task]) -> Task | None:
    """Return the task whose rows the tiny model is trained with: the task itself, or one with the same Auto class, or
    any that the architecture has.

    Args:
        others: tasks of the architecture.
    """
    auto = spec_of(task).auto_class
    candidates = [task, *(one for one in others if spec_of(one).auto_class == auto), *others]
    return next((one for one in candidates if spec_of(one).supervision in TAUGHT), None)


def excluding(unreached: Iterable[str]) -> str:
    """Return PEFT's `exclude_modules` for modules and all that is within them: a pattern of whole names."""
    return "|".join(rf"(.*\.)?{re.escape(name)}(\..*)?" for name in unreached)
