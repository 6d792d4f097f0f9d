"""How a failing command ends: every error becomes a sentence."""

import argparse
import errno
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from finetune_api.contract import ExitCode
from finetune_api.errors import FineTuneError, Problem, exit_code

INTERRUPTED = 130  # what a shell expects after Ctrl-C
PIPE_CLOSED = 141  # and of a program whose reader has gone

CURES = {
    errno.ENOSPC: "free space on that disk, or set TMPDIR to a folder of another one",
    errno.EDQUOT: "free space within the quota, or set TMPDIR to a folder elsewhere",
    errno.EACCES: "change the permissions, or name another place",
    errno.EPERM: "change the permissions, or name another place",
    errno.EROFS: "name a writable place; TMPDIR and HF_HOME set where temporary and cached files go",
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
}

Command = Callable[[argparse.Namespace, Console], int]
Show = Callable[[argparse.Namespace, Console, list[Problem], int], None]


class QuietConsole(Console):
    """A console whose reader may go away: the program ends, and says nothing of it."""

    def on_broken_pipe(self) -> None:
        """Raise what `guarded` ends with."""
        raise BrokenPipeError


def guarded(options: argparse.Namespace, console: Console, show: Show) -> int:
    """Run a command; return its exit status.

    Args:
        show: shows problems, and gets the status too.
    """
    try:
        code = int(options.command(options, console))
        sys.stdout.flush()
        return code
    except FineTuneError as error:
        problems, code = list(error.problems), int(exit_code(error))
    except KeyboardInterrupt:
        console.print(f"stopped{options.after_stop}", highlight=False)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return PIPE_CLOSED
    except OSError as error:
        problems, code = [_of_system(error, options)], int(ExitCode.UNKNOWN)
    except ModuleNotFoundError as error:
        problems, code = [_not_installed(error, options)], int(ExitCode.UNKNOWN)
    except Exception as error:
        problems, code = [_unexpected(error, options)], int(ExitCode.UNKNOWN)
    try:
        show(options, console, problems, code)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    return code


def _forget_stdout() -> None:
    """Replace stdout, which is closed: otherwise the interpreter complains when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _of_system(error: OSError, options: argparse.Namespace) -> Problem:
    where = f"{error.filename}: " if error.filename else ""
    message = f"{where}{error.strerror or error}"
    cure = CURES.get(error.errno or 0, "check the path and its permissions")
    return Problem(code="System", field=options.name, message=message, cure=f"{cure}{_details(error, options)}")


def _not_installed(error: ModuleNotFoundError, options: argparse.Namespace) -> Problem:
    if (error.name or "").startswith("finetune"):
        return _unexpected(error, options)
    message = f"the package {error.name} is not installed here"
    cure = f"install what the trainer needs: pip install 'finetune-operator[trainer]'{_details(error, options)}"
    return Problem(code="NotInstalled", field=options.name, message=message, cure=cure)


def _unexpected(error: Exception, options: argparse.Namespace) -> Problem:
    """Return the problem of a bug in this program."""
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    cure = f"this is a bug in finetune-operator; report it with `finetune --version`{_details(error, options)}"
    return Problem(code="Unexpected", field=options.name, message=what, cure=cure)


def _details(error: BaseException, options: argparse.Namespace) -> str:
    """Return where the traceback is: on the terminal with --debug, else in a file, if one can be written."""
    text = "".join(traceback.format_exception(error))
    if options.debug:
        sys.stderr.write(text)
        return ""
    try:
        path = Path(tempfile.gettempdir()) / f"finetune-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        path.write_text(text, "utf-8")
    except OSError:
        return "; --debug shows the traceback"
    return f"; the traceback is in {path}, --debug shows it"
