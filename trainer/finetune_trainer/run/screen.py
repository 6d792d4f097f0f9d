"""The display of a local run: a live bar on a terminal, occasional lines elsewhere."""

from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from finetune_api.beats import EvalMetrics, Progress
from finetune_api.errors import Problem
from finetune_api.plan import Plan
from finetune_trainer.evaluations.records import Sample
from finetune_trainer.prepare.plan.table import choices, estimate_line, memory_table

SHOWN_SAMPLES = 2
SAMPLE_CHARACTERS = 160
HEAD = 9  # columns of a line's heading
PLAIN_LINE_EVERY = 0.1  # share of the run between two lines without a terminal


class Screen:
    """Shows one run from its first stage to its last."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self._task = self._bar.add_task("train", total=None, numbers="", start=False)
        self._live: Live | None = None
        self._evaluated = 0
        self._recovered: set[int] = set()
        self._checkpoints: set[int] = set()
        self._next_line = 0.0
        self._note = ""
        self._outcome = ""

    def show_line(self, stage: str, text: str) -> None:
        """Show one line of a stage."""
        self._line(stage, text, "bold")

    def stage_line(self, line: str) -> None:
        """Show a line in the form of a stage's reports: `dataset: tokenising`."""
        stage, _, text = line.partition(": ")
        self.show_line(stage, text)

    def show_plan(self, plan: Plan) -> None:
        """Show data, model and plan, in three lines."""
        data = plan.dataset
        labels = f", {len(data.labels)} labels" if data.labels else ""
        held_out = f" + {data.eval.examples or data.eval.rows:,} held out" if data.eval else ""
        packed = f" in {data.train.rows:,} packs" if data.train.examples > data.train.rows else ""
        rows = data.train.examples or data.train.rows
        self.show_line("data", f"{rows:,} rows{packed}{held_out}, {data.train.tokens:,} tokens{labels}")
        millions = plan.model.parameters / 1e6
        self.show_line("model", f"{plan.model.name}: {plan.model.model_type}, {millions:,.1f} M parameters")
        layout, schedule = plan.layout, plan.schedule
        self.show_line(
            "plan",
            f"{plan.method}, {layout.nodes} x {layout.processes_per_node} processes, ZeRO-{layout.zero_stage}, "
            f"{schedule.max_steps:,} steps of {layout.global_batch} rows, learning rate {schedule.learning_rate:g}",
        )

    def show_choices(self, plan: Plan) -> None:
        """Show every value of a plan with its reason, memory by component, and estimates of time and cost."""
        self._console.print(choices(plan.choices, self._console.width))
        if plan.prediction.memory:
            self._console.print(memory_table(plan.prediction.memory))
        if plan.prediction.estimate:
            self._console.print(estimate_line(plan.prediction.estimate), highlight=False)

    def start(self) -> None:
        """Begin to show training."""
        if self._console.is_terminal:
            self._live = Live(self._bar, console=self._console, refresh_per_second=8)
            self._live.start()

    def stop(self) -> None:
        """End the display of training."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show_progress(self, progress: Progress) -> None:
        """Show the last progress from the leader."""
        for evaluation in progress.evals[self._evaluated :]:
            self.show_line("eval", f"step {evaluation.step}: {figures(evaluation)}")
        self._evaluated = max(self._evaluated, len(progress.evals))
        for recovery in progress.recoveries:
            if recovery.generation not in self._recovered:
                self._recovered.add(recovery.generation)
                self.show_line("recovery", f"generation {recovery.generation}: {recovery.reason}")
        for step in sorted({facts.step for facts in progress.checkpoints} - self._checkpoints):
            self._checkpoints.add(step)
            self.show_line("saved", f"checkpoint {step} committed")
        if progress.note and progress.note != self._note:
            self._note = progress.note
            self.show_line("note", progress.note)
        since = progress.overfitting_since
        outcome = progress.stopped_early or (
            f"overfits since step {since}: eval loss rises, training loss falls" if since else ""
        )
        if outcome and outcome != self._outcome:
            self._outcome = outcome
            self.show_line("eval", outcome)
        self._bar.update(
            self._task, total=progress.max_steps or None, completed=progress.step, numbers=numbers(progress)
        )
        done = progress.step / progress.max_steps if progress.max_steps else 0.0
        if not self._console.is_terminal and progress.loss is not None and done >= self._next_line:
            self.show_line(
                "train", f"step {progress.step}/{progress.max_steps} · {schedule(progress)} · {numbers(progress)}"
            )
            self._next_line = done + PLAIN_LINE_EVERY

    def show_samples(self, samples: Iterable[Sample]) -> None:
        """Show a few generated answers of the last evaluation, with the references."""
        for sample in list(samples)[:SHOWN_SAMPLES]:
            prompt, right, answer = (
                " ".join(text.split()) for text in (sample.prompt, sample.reference, sample.answer)
            )
            self.show_line("sample", f"{_end_of(prompt)} -> {_start_of(answer)} (right: {_start_of(right)})")

    def problems(self, problems: Iterable[Problem]) -> None:
        """Show each problem with its cure in a line, which a terminal breaks between words."""
        for problem in problems:
            self._line("error", str(problem), "bold red")

    def _line(self, head: str, text: str, style: str) -> None:
        """Show a line. A terminal breaks it between words, unless it would break a long word, such as a path."""
        room = self._console.width - HEAD - 1
        if not self._console.is_terminal or any(len(word) > room for word in text.split()):
            line = f"[{style}]{head:<{HEAD}}[/{style}] {escape(text)}"
            self._console.print(line, highlight=False, soft_wrap=True)
            return
        grid = Table.grid(Column(width=HEAD, no_wrap=True), Column(), padding=(0, 1, 0, 0))
        grid.add_row(Text(head, style), Text(text))
        self._console.print(grid)


def _start_of(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[:SAMPLE_CHARACTERS]}..."


def _end_of(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else f"...{text[-SAMPLE_CHARACTERS:]}"


def figures(evaluation: EvalMetrics) -> str:
    """Return the metrics in the form `loss 0.412, accuracy 0.861`."""
    return ", ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in evaluation.values.items())


def numbers(progress: Progress) -> str:
    """Return the figures beside the bar; with the bar they fit into 80 columns."""
    if progress.loss is None:
        return progress.phase
    eta = progress.eta_seconds
    timed = eta is not None and progress.phase == "train"
    state = f"{int(eta or 0) // 60}:{int(eta or 0) % 60:02d} left" if timed else progress.phase
    return f"loss {progress.loss:.4f} · {progress.tokens_per_second:,.0f} tokens/s · {state}"


def schedule(progress: Progress) -> str:
    """Return epoch and learning rate."""
    return f"epoch {progress.epoch:.2f} · lr {progress.learning_rate or 0.0:.2e}"
