"""What is printed fits the terminal, and no name is broken in it."""

import io

import pytest
from rich.console import Console, RenderableType

from finetune_api.errors import Problem
from finetune_api.messages import Task
from finetune_api.plan import Choice, MemoryPart, PlannedMemory
from finetune_trainer.prepare.plan.table import choices, memory_table
from finetune_trainer.prepare.quality.printed import findings
from finetune_trainer.prepare.quality.report import Finding, Lengths, Padding, QualityReport, Severity, SplitQuality
from finetune_trainer.run.screen import Screen

WIDTHS = (60, 80, 119, 120, 200)
LONG = "the fastest that fits: rows of 512 tokens, 3.81 of 4 GiB a rank (assumed; state resourcesPerNode.limits.memory)"
CHOICES = [
    Choice(field="spec.training.per_device_train_batch_size", value=4, reason=LONG, origin="rule"),
    Choice(field="spec.training.gradient_accumulation_steps", value=4, reason="fills the global batch", origin="rule"),
    Choice(field="spec.method.lora.target_modules", value=[f"layers.{n}.q_proj" for n in range(9)], reason="as given",
           origin="user"),
]  # fmt: skip


def report() -> QualityReport:
    lengths = Lengths(p1=1, p5=1, p25=1, p50=1, p75=1, p90=1, p95=1, p99=1, longest=1)
    padding = Padding(micro_batch=1, shuffled=0.1, grouped=0.1, packed=0.1, pack_length=8)
    train = SplitQuality(
        rows=1200, distinct_rows=1, tokens=1, truncated_rows=0, length_for_99_percent=1, lengths=lengths, histogram=(),
        padding=padding, sampled=1, sample_complete=True,
    )  # fmt: skip
    found = [
        Finding(severity=severity, code=code, split="train", message=f"[b]{LONG}[/b]", cure="merge them with others")
        for severity, code in ((Severity.ERROR, "ConflictingLabels"), (Severity.WARNING, "UnfilledPlaceholders"))
    ]
    return QualityReport(name="x", task=Task.CAUSAL_LM, max_length=8, train=train, findings=tuple(found))


def memory() -> PlannedMemory:
    parts = tuple(MemoryPart(name=name, bytes=10**9, why=LONG) for name in ("activations", "optimizer"))
    return PlannedMemory(unit="GPU", limit=10**10, source="spec.gpuType H100", moment="loss", parts=parts, bytes=10**9)


def shown(made: RenderableType, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(made)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_table_fits_and_breaks_no_word(width: int) -> None:
    for made in (choices(CHOICES, width), findings(report(), width), memory_table(memory())):
        lines = shown(made, width)
        assert max(map(len, lines)) <= width
        assert set(LONG.split()[1:-1]) <= {word for line in lines for word in line.split()}
        assert "…" not in "".join(lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_names_stand_whole_without_spec_and_findings_with_their_code(width: int) -> None:
    text = "\n".join(shown(choices(CHOICES, width), width))
    for choice in CHOICES:
        assert choice.field.removeprefix("spec.") in text
    assert "spec." not in text
    assert "resourcesPerNode.limits.memory)" in text
    text = "\n".join(shown(findings(report(), width), width))
    for code in ("ConflictingLabels", "UnfilledPlaceholders"):
        assert code in text
    assert "[b]" in text, "data is no markup"


def test_an_error_is_a_line_in_a_file_and_broken_between_words_on_a_terminal() -> None:
    problem = Problem(code="Code", field="spec.training.learning_rate", message=LONG, cure="mend it")
    out = io.StringIO()
    Screen(Console(file=out, width=60)).problems([problem])
    assert out.getvalue() == f"error     {problem}\n"
    out = io.StringIO()
    Screen(Console(file=out, width=60, force_terminal=True, color_system=None)).problems([problem])
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(line[9:].strip() for line in lines) == str(problem)


def test_a_path_that_is_longer_than_the_terminal_is_not_broken() -> None:
    path = "/a" * 60
    out = io.StringIO()
    Screen(Console(file=out, width=60, force_terminal=True, color_system=None)).show_line("adapter", path)
    assert path in out.getvalue()
