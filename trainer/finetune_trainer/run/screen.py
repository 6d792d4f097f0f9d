"""What a person sees of a local run: a live bar on a terminal, a line now and then anywhere else."""

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
HEAD = 9  # columns of what a line is about
PLAIN_LINE_EVERY = 0.1  # of the run, where there is no terminal to redraw


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
        self._told = ""

    def says(self, stage: str, text: str) -> None:
        """One line of a stage."""
        self._line(stage, text, "bold")

    def stage_line(self, line: str) -> None:
        """A line as stages report them: `dataset: tokenising`."""
        stage, _, text = line.partition(": ")
        self.says(stage, text)

    def planned(self, plan: Plan) -> None:
        """What prepare found and chose, in three lines."""
        data = plan.dataset
        labels = f", {len(data.labels)} labels" if data.labels else ""
        held_out = f" + {data.eval.examples or data.eval.rows:,} held out" if data.eval else ""
        packed = f" in {data.train.rows:,} packs" if data.train.examples > data.train.rows else ""
        rows = data.train.examples or data.train.rows
        self.says("data", f"{rows:,} rows{packed}{held_out}, {data.train.tokens:,} tokens{labels}")
        millions = plan.model.parameters / 1e6
        self.says("model", f"{plan.model.name}: {plan.model.model_type}, {millions:,.1f} M parameters")
        layout, schedule = plan.layout, plan.schedule
        self.says(
            "plan",
            f"{plan.method}, {layout.nodes} x {layout.processes_per_node} processes, ZeRO-{layout.zero_stage}, "
            f"{schedule.max_steps:,} steps of {layout.global_batch} rows, learning rate {schedule.learning_rate:g}",
        )

    def explains(self, plan: Plan) -> None:
        """Every value of a plan and why, its memory by component, and what it will take."""
        self._console.print(choices(plan.choices, self._console.width))
        if plan.prediction.memory:
            self._console.print(memory_table(plan.prediction.memory))
        if plan.prediction.estimate:
            self._console.print(estimate_line(plan.prediction.estimate), highlight=False)

    def start(self) -> None:
        """Training begins."""
        if self._console.is_terminal:
            self._live = Live(self._bar, console=self._console, refresh_per_second=8)
            self._live.start()

    def stop(self) -> None:
        """Training has ended."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def shows(self, progress: Progress) -> None:
        """The run as the leader told it last."""
        for evaluation in progress.evals[self._evaluated :]:
            self.says("eval", f"step {evaluation.step}: {figures(evaluation)}")
        self._evaluated = max(self._evaluated, len(progress.evals))
        for recovery in progress.recoveries:
            if recovery.generation not in self._recovered:
                self._recovered.add(recovery.generation)
                self.says("recovery", f"generation {recovery.generation}: {recovery.reason}")
        for step in sorted({facts.step for facts in progress.checkpoints} - self._checkpoints):
            self._checkpoints.add(step)
            self.says("saved", f"checkpoint {step} committed")
        if progress.note and progress.note != self._note:
            self._note = progress.note
            self.says("note", progress.note)
        since = progress.overfitting_since
        told = progress.stopped_early or (
            f"overfits since step {since}: eval loss rises, training loss falls" if since else ""
        )
        if told and told != self._told:
            self._told = told
            self.says("eval", told)
        self._bar.update(
            self._task, total=progress.max_steps or None, completed=progress.step, numbers=numbers(progress)
        )
        done = progress.step / progress.max_steps if progress.max_steps else 0.0
        if not self._console.is_terminal and progress.loss is not None and done >= self._next_line:
            self.says(
                "train", f"step {progress.step}/{progress.max_steps} · {schedule(progress)} · {numbers(progress)}"
            )
            self._next_line = done + PLAIN_LINE_EVERY

    def answered(self, samples: Iterable[Sample]) -> None:
        """A few generated answers beside the right ones, of the last evaluation."""
        for sample in list(samples)[:SHOWN_SAMPLES]:
            prompt, right, answer = (
                " ".join(text.split()) for text in (sample.prompt, sample.reference, sample.answer)
            )
            self.says("sample", f"{_end_of(prompt)} -> {_start_of(answer)} (right: {_start_of(right)})")

    def problems(self, problems: Iterable[Problem]) -> None:
        """Everything that is wrong, each with its cure: a line each, which a terminal breaks between words."""
        for problem in problems:
            self._line("error", str(problem), "bold red")

    def _line(self, head: str, text: str, style: str) -> None:
        """A line; a terminal breaks it between words, unless a word, such as a path to be copied, would be broken."""
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
    """`loss 0.412, accuracy 0.861`"""
    return ", ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in evaluation.values.items())


def numbers(progress: Progress) -> str:
    """The figures beside the bar; with it they fit into 80 columns."""
    if progress.loss is None:
        return progress.phase
    eta = progress.eta_seconds
    timed = eta is not None and progress.phase == "train"
    state = f"{int(eta or 0) // 60}:{int(eta or 0) % 60:02d} left" if timed else progress.phase
    return f"loss {progress.loss:.4f} · {progress.tokens_per_second:,.0f} tokens/s · {state}"


def schedule(progress: Progress) -> str:
    """Where the run stands, for a line of its own."""
    return f"epoch {progress.epoch:.2f} · lr {progress.learning_rate or 0.0:.2e}"
