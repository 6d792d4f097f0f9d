"""Processes that share the work: Ctrl-C on a terminal reaches all of them, and one line is said of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import time
from finetune_trainer.prepare.pool import map_in_order

if __name__ == "__main__":
    try:
        for _ in map_in_order(time.sleep, [0, *[0.5] * 600], 2):
            print("ready", flush=True)
    except KeyboardInterrupt:
        print("stopped")
"""


def test_ctrl_c_of_a_terminal_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    child = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert out.splitlines()[-1] == "stopped"
    assert err == ""
