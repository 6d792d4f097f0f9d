"""What a pod's first process owes to the kernel, and patience with storage."""

import asyncio
import subprocess
import sys

import pytest

from finetune_api.errors import Problem, StorageError
from finetune_trainer.agent.patience import patiently
from finetune_trainer.storage import NotFoundError

REAPER = """
import ctypes, os, subprocess
from finetune_trainer.process.ties import prctl, reap_orphans

PR_SET_CHILD_SUBREAPER = 36
prctl(PR_SET_CHILD_SUBREAPER, 1)
own = subprocess.Popen(["true"])
os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
reap_orphans(own.pid)
assert own.wait() == 0, "the status of its own child is left to its owner"
read, write = os.pipe()  # the child of the shell outlives it: it ends when `write` is closed
shell = ["sh", "-c", f"cat <&{read} >/dev/null & echo $!"]
orphan = int(subprocess.run(shell, stdout=subprocess.PIPE, pass_fds=[read]).stdout)
os.close(write)
os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
reap_orphans(own.pid)
assert not os.path.exists(f"/proc/{orphan}"), "no zombie is left"
reap_orphans(None)
"""

REFUSED = StorageError(Problem(code="Unreachable", field="spec.storage.uri", message="no answer", cure="wait"))


def test_orphans_are_reaped_and_own_children_are_left_to_their_owner() -> None:
    ended = subprocess.run([sys.executable, "-c", REAPER], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stderr


def test_storage_that_comes_back_is_waited_for() -> None:
    answers = [REFUSED, REFUSED, "plan"]

    def work() -> str:
        answer = answers.pop(0)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    assert asyncio.run(patiently(work, seconds=60)) == "plan"


def test_patience_ends_with_the_sentence_of_the_storage() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise REFUSED

    with pytest.raises(StorageError, match="no answer"):
        asyncio.run(patiently(work, seconds=1))
    assert len(calls) == 2


def test_what_is_missing_is_not_waited_for() -> None:
    def work() -> None:
        raise NotFoundError(REFUSED.problems)

    with pytest.raises(NotFoundError):
        asyncio.run(patiently(work, seconds=60))
