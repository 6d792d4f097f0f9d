"""Errors that tell something of the machine and nothing of the architecture: disk, memory, ports, processes."""

import errno

import torch

from finetune_trainer.probe.question import MachineFault

NUMBERS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.EAGAIN, errno.EMFILE, errno.ENFILE),
        *(errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT),
    }
)
MEMORY_SIGNS = ("allocate memory", "bad_alloc")
# Libraries that write files in C++ and Rust raise errors of their own. `inline_container` is torch's writer of archives
# (torch 2.13), which reports a full disk as an unexpected position.
SIGNS = ("No space left", "(os error", "inline_container.cc", "start new thread")


def fault_of(error: BaseException) -> MachineFault | None:
    """Return the fault of the machine that an error is or was raised from; None if it is one of the architecture."""
    number, text = error.errno if isinstance(error, OSError) else None, str(error)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(sign in text for sign in MEMORY_SIGNS):
        return MachineFault.MEMORY
    if isinstance(error, torch.distributed.DistError) or number in NUMBERS or any(sign in text for sign in SIGNS):
        return MachineFault.OTHER
    return fault_of(error.__cause__) if error.__cause__ is not None else None
