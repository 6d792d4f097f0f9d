"""The processes that `finetune run` starts, and what they see of it."""

import subprocess
import sys

PR_GET_DUMPABLE = 3  # prctl(2): 0 = no other process of the user reads /proc/<pid>/environ and mem


def test_the_command_hides_its_environment_before_its_first_child() -> None:
    code = (
        "import ctypes, sys; from finetune_trainer.run.children import Children;"
        "seen = lambda: ctypes.CDLL(None).prctl(int(sys.argv[1]), 0, 0, 0, 0);"
        "before = seen(); Children(None); print(before, seen())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(PR_GET_DUMPABLE)], check=True, capture_output=True, text=True, timeout=300
    )
    assert told.stdout.split() == ["1", "0"]
