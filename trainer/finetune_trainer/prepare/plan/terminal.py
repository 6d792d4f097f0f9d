"""What a person sees of a plan's memory and cost: `finetune plan`."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Column, Table

from finetune_api.messages import Estimate, MemoryPart, PlannedMemory
from finetune_trainer.prepare.plan.gpus import GIB


def memory_table(memory: PlannedMemory) -> Table:
    """The predicted peak by component, and why it is so large."""
    moment = {
        "loss": "at the loss",
        "backward": "at the end of the backward pass",
        "step": "in the optimizer's step",
        "evaluation": "in an evaluation",
    }
    table = Table(
        Column("memory", no_wrap=True),
        Column("GiB", justify="right"),
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
    """`0.9 h, 7.2 GPU-hours, cost 18.05 (a step of 2.3 s; ...)`"""
    parts = [_time(estimate.hours)]
    if estimate.gpu_hours is not None:
        parts.append(f"{estimate.gpu_hours:,g} GPU-hours")
    if estimate.cost is not None:
        parts.append(f"cost {estimate.cost}")
    return f"about {', '.join(parts)} ({estimate.step_seconds:g} s a step; {estimate.how})"


def _time(hours: float) -> str:
    return f"{hours:,.3g} h" if hours >= 1 else f"{hours * 60:.2g} minutes"
