"""What `finetune run` shows of a run that an earlier invocation has completed."""

import io

from rich.console import Console

from finetune_api.messages import Artifact
from finetune_trainer.commands.run import show_old_warnings
from finetune_trainer.run.screen import Screen


def test_a_run_that_is_complete_still_says_why_it_was_not_judged() -> None:
    shown = io.StringIO()
    screen = Screen(Console(file=shown, width=200))
    warnings = ("NotJudged: the process had too little memory",)
    show_old_warnings(screen, [Artifact(kind="adapter", uri="file:///a", step=1, warnings=warnings)])
    show_old_warnings(screen, [])
    assert shown.getvalue().split() == ["warning", *warnings[0].split()]
