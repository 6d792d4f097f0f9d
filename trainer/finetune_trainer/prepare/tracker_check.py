"""The trackers that a job names: transformers must know them, and this image, in which training runs too, have them."""

import difflib
from collections.abc import Sequence
from importlib.util import find_spec

from finetune_api.errors import Problem, SpecError
from finetune_trainer.prepare.plan.choice_log import problem

FIELD = "spec.training.report_to"
# transformers' name (integrations/integration_utils.py, INTEGRATION_TO_CALLBACK): the module it imports, its package
PACKAGES: dict[str, tuple[str, str]] = {
    "azure_ml": ("azureml.core.run", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse an unknown tracker, or one whose package this image lacks.

    Raises:
        SpecError: all that is wrong.
    """
    found = [wrong for at, name in enumerate(names) if (wrong := _wrong(f"{FIELD}[{at}]", name, len(names)))]
    if found:
        raise SpecError(found)


def _wrong(field: str, name: str, count: int) -> Problem | None:
    if name == "none" and count == 1:
        return None
    if name not in PACKAGES:
        near = difflib.get_close_matches(name, PACKAGES, n=1)
        known = f"one of {', '.join(PACKAGES)}"
        message = f"is {name!r}, which is not a tracker that transformers supports"
        return problem("UnknownTracker", field, message, f"did you mean {near[0]}?" if near else f"write {known}")
    module, package = PACKAGES[name]
    if _installed(module):
        return None
    message = f"is {name}, and this image has no {package}"
    cure = f"use an image with it (pip install {package}) as spec.image, or leave it out: TensorBoard's events are kept"
    return problem("NotInstalled", field, message, cure)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False
