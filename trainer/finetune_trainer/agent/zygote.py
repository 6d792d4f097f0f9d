"""The warm process that workers are forked from: it imports torch, transformers, DeepSpeed and PEFT once per pod, in
16 s; then a worker starts in 0.03 s. It never touches CUDA and never opens a parallel region.

It reads requests from stdin and writes answers to stdout, as JSON lines; workers write their events to the inherited
descriptor that the command line names. It exits, with its workers, when stdin closes or its parent dies.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from typing import Any, NoReturn

from finetune_trainer.agent.security import drop_capabilities
from finetune_trainer.process.lean_imports import lean_model_imports
from finetune_trainer.process.ties import die_with_parent

# The libraries import these lazily, so that every worker would import them again (PYTHONPROFILEIMPORTTIME=1 shows them
# in a worker's log). Left out are deepspeed.ops.triton_ops and what imports it: they ask for a GPU, and no fork could
# use one then.
LAZY_IMPORTS = (
    "deepspeed.module_inject",
    "deepspeed.module_inject.auto_ep_comm",
    "deepspeed.module_inject.auto_ep_config",
    "deepspeed.moe.ep_experts",
    "deepspeed.moe.ep_repack",
    "deepspeed.moe.ep_router",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "peft.utils.transformers_weight_conversion",
    "torch.profiler._cupti_monitor",
    "torch.utils.cpp_extension",
    "torch.utils.serialization.config",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)


def warm_up() -> None:
    """Import everything, fill the caches that each worker would fill, and freeze the heap so that forks share it."""
    # PEFT imports bitsandbytes if it is installed, and that initialises CUDA: no fork could use a GPU then.
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    from finetune_trainer.worker.late_compilation import compilation_at_first_call

    with lean_model_imports(), compilation_at_first_call():
        importlib.import_module("finetune_trainer.worker.rank_run")
        for name in LAZY_IMPORTS:
            with contextlib.suppress(ImportError):  # an inner module of a library may move; workers then import it
                importlib.import_module(name)
    import deepspeed.ops
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    _ = deepspeed.ops.__compatible_ops__
    get_checkpoint_conversion_mapping("llama")  # type: ignore[no-untyped-call]
    gc.collect()
    gc.freeze()  # a later collection walks 0 instead of 587,000 objects


def main() -> NoReturn:
    """Warm up, then fork a worker per request until stdin ends."""
    agent, events = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(agent)
    answers = os.dup(1)
    os.dup2(2, 1)  # output of libraries goes to the log
    drop_capabilities()
    warm_up()
    Zygote(answers, events).serve()


class Zygote:
    """The serving loop; `answers` and `events` are descriptors."""

    def __init__(self, answers: int, events: int) -> None:
        self._answers = answers
        self._events = events
        self._children: set[int] = set()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> NoReturn:
        """Fork workers until stdin ends, then kill them and exit."""
        signal.set_wakeup_fd(self._wake_write)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes; the agent acts
        self._answer(event="ready")
        pending = b""
        while True:
            readable, _, _ = select.select([0, self._wake_read], [], [])
            if self._wake_read in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                self._reap()
            if 0 in readable:
                chunk = os.read(0, 1 << 20)
                if not chunk:
                    self._end()
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    self._fork(json.loads(line))

    def _fork(self, request: dict[str, Any]) -> None:
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(zygote, request)
        # The child calls setsid too; whichever call is first, a kill of the group reaches it.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        self._children.add(pid)
        self._answer(event="started", id=request["id"], pid=pid)

    def _become_worker(self, zygote: int, request: dict[str, Any]) -> NoReturn:
        code = 1
        try:
            with contextlib.suppress(PermissionError):  # it leads a group already: the parent's setpgid was first
                os.setsid()
            die_with_parent(zygote)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            for descriptor in (self._wake_read, self._wake_write, self._answers):
                os.close(descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            log = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = self._work(request)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # destructors of a broken process group may block forever

    def _work(self, request: dict[str, Any]) -> int:
        import torch

        from finetune_trainer.process.orders import WorkerOrder
        from finetune_trainer.worker.rank_run import run_rank

        if torch.cuda._is_in_bad_fork():
            raise RuntimeError("the zygote touched CUDA before the fork; its workers cannot use a GPU")
        return int(run_rank(WorkerOrder.model_validate(request["order"]), self._events))

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            self._answer(event="exited", pid=pid, exit_code=os.waitstatus_to_exitcode(status))

    def _answer(self, **values: object) -> None:
        os.write(self._answers, (json.dumps(values) + "\n").encode())

    def _end(self) -> NoReturn:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        os._exit(0)


if __name__ == "__main__":
    main()
