"""What a person sees of a plan: `finetune plan`."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from finetune_api.plan import Choice, Estimate, MemoryPart, PlannedMemory
from finetune_trainer.prepare.plan.gpus import GIB

WIDE = 120  # columns of a terminal from which on a table is easier to read than paragraphs


def choices(made: Iterable[Choice], width: int) -> RenderableType:
    """Return every value of a plan with its origin and reason: as a table where that is readable, else in paragraphs.

    Fields are shown without `spec.`, and no name is broken.
    """
    return _choices_table(made) if width >= WIDE else Group(Text("plan"), *_paragraphs(made))


def _choices_table(made: Iterable[Choice]) -> Table:
    table = Table(
        Column("field", no_wrap=True),
        Column("value", ratio=1, overflow="fold"),
        Column("by", no_wrap=True),
        Column("why", ratio=2),
        title="plan",
        title_justify="left",
    )
    for choice in made:
        table.add_row(_field(choice), Text(str(choice.value)), choice.origin, Text(choice.reason))
    return table


def _paragraphs(made: Iterable[Choice]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for choice in made:
        head = Text.assemble((_field(choice), "bold"), f" = {choice.value}")
        parts += [head, Padding(Text(f"{choice.origin}: {choice.reason}"), (0, 0, 0, 4))]
    return parts


def _field(choice: Choice) -> str:
    return choice.field.removeprefix("spec.")


def memory_table(memory: PlannedMemory) -> Table:
    """Return a table of the predicted peak by component, with the reason of each."""
    moment = {
        "loss": "at the loss",
        "backward": "at the end of the backward pass",
        "step": "in the optimizer's step",
        "evaluation": "in an evaluation",
    }
    table = Table(
        Column("memory", no_wrap=True),
        Column("GiB", justify="right", no_wrap=True),
        Column("why", ratio=1),
        title=f"peak of one {memory.unit}, {moment[memory.moment]}",
        title_justify="left",
    )
    _rows(table, memory.parts)
    table.add_section()
    table.add_row("in all", f"{memory.bytes / GIB:.2f}", f"of {memory.limit / GIB:.4g} GiB ({escape(memory.source)})")
    if memory.host:
        table.add_section()
        _rows(table, memory.host, "host: ")
    return table


def _rows(table: Table, parts: Iterable[MemoryPart], prefix: str = "") -> None:
    for part in parts:
        table.add_row(prefix + part.name, f"{part.bytes / GIB:.2f}", escape(part.why))


def estimate_line(estimate: Estimate) -> str:
    """Return `0.9 h, 7.2 GPU-hours, cost 18.05 (a step of 2.3 s; ...)`"""
    parts = [_time(estimate.hours)]
    if estimate.gpu_hours is not None:
        parts.append(f"{estimate.gpu_hours:,g} GPU-hours")
    if estimate.cost is not None:
        parts.append(f"cost {estimate.cost}")
    return f"about {', '.join(parts)} ({estimate.step_seconds:g} s a step; {estimate.how})"


def _time(hours: float) -> str:
    return f"{hours:,.3g} h" if hours >= 1 else f"{hours * 60:.2g} minutes"
