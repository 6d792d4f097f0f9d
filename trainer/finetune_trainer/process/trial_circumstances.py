"""What a judgement and a suite depend on beside the model and its settings: memory, cores, packages, the attempt.

A trial that failed is made again once its circumstances differ. Otherwise every retry of an export would load the same
models into the same memory, and fail again.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from finetune_api.contract import Env
from finetune_api.v1alpha1.run_specs import ExportSpec
from finetune_trainer.process.control_group import usable_cores, usable_memory

GIB = 1 << 30
MODEL_PACKAGES = ("finetune-operator", "torch", "transformers", "peft")


def asked_of_stage(spec: ExportSpec) -> str:
    """Return what a job says of the stage, and its attempt, which asks for another trial."""
    resources = spec.resources.model_dump(mode="json") if spec.resources else None
    return json.dumps({"attempt": spec.attempt or 1, "stage": resources}, sort_keys=True)


def trial_circumstances(
    asked: str,
    packages: Sequence[str] = MODEL_PACKAGES,
    beside: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Return a digest of the circumstances of a trial.

    Args:
        asked: what the job says, see `asked_of_stage`.
        packages: whose versions matter.
        beside: whatever else matters.
        environ: of the stage.
    """
    seen: list[object] = [asked, {name: _version(name) for name in packages}, list(beside)]
    if environ.get(Env.LOCAL):  # nodes of a cluster differ, and the job names the resources of its pods
        seen += [usable_memory() // GIB, usable_cores()]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
