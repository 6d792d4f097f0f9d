"""What a test on a server depends on beside the model and its settings: the server, and what it may take.

A test that gave no verdict is made again once its circumstances differ. Otherwise an artifact whose server is missing
would be made again by every retry of an export.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from finetune_api.contract import Env
from finetune_api.v1alpha1.run_specs import ExportSpec
from finetune_trainer.process.control_group import usable_memory
from finetune_trainer.serving.server_commands import Kind, NoServerError, server_program

GIB = 1 << 30


def asked_circumstances(spec: ExportSpec) -> str:
    """Return what a job says of the server and of the stage, and its attempt, which asks for another test."""
    test = spec.serve_test
    parts = {
        "attempt": spec.attempt or 1,
        "image": test.image if test else None,
        "server": test.resources.model_dump(mode="json") if test and test.resources else None,
        "stage": spec.resources.model_dump(mode="json") if spec.resources else None,
    }
    return json.dumps(parts, sort_keys=True)


def circumstances_of(kind: Kind, asked: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return a digest of the circumstances of a test.

    Args:
        asked: what the job says, see `asked_circumstances`.
    """
    seen: list[object] = [asked]
    in_pod = environ.get(Env.SERVE_FOLDER) or environ.get(Env.SERVE_OBSTACLE)
    if not in_pod:  # nodes of a cluster differ, and the job names the resources of its pods
        seen += [_program(kind, environ), usable_memory() // GIB]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _program(kind: Kind, environ: Mapping[str, str]) -> str:
    """Return the server of this machine with the time of its installation; empty without one."""
    try:
        path = server_program(kind, environ)[0]
        return f"{path} {Path(path).stat().st_mtime_ns}"
    except (NoServerError, OSError):
        return ""
