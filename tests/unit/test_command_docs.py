"""docs/command.md tells of every command, option and exit status, and of no other."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from finetune_api.contract import ExitCode
from finetune_trainer.commands.faults import INTERRUPTED, PIPE_CLOSED
from finetune_trainer.commands.main import parser

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/command.md").read_text()
OF_NODES = {ExitCode.DISTRIBUTED, ExitCode.GANG_FAILED, ExitCode.DRAINED}  # of processes that a run starts
ARGPARSE = 2


def commands() -> dict[str, argparse.ArgumentParser]:
    [found] = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def test_every_command_and_option_is_told() -> None:
    made = {
        option for command in commands().values() for action in command._actions for option in action.option_strings
    }
    told = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert made - {"-h"} <= told
    assert told <= made | {"--version"}
    for name in commands():
        assert f"finetune {name}" in TEXT


def test_every_exit_status_is_told() -> None:
    told = {int(status) for status in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    assert told == {int(code) for code in ExitCode} - OF_NODES | {ARGPARSE, INTERRUPTED, PIPE_CLOSED}


def test_help_names_them_too() -> None:
    text = parser().format_help()
    for status in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE):
        assert re.search(rf"\b{status}\b", text), status
    for command in commands().values():
        assert all(action.help for action in command._actions)


@pytest.mark.parametrize("name", ["README.md", "docs/command.md", "docs/quickstart.md", "docs/kubernetes.md"])
def test_every_command_that_is_shown_is_one(name: str) -> None:
    text = (ROOT / name).read_text()
    for line in re.findall(r"^ +(?:\$ )?finetune (.*)$", text, re.MULTILINE):
        parser().parse_args(shlex.split(line, comments=True))
