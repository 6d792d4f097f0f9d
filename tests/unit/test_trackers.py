"""Trackers that a job names: known, installed, and given their own settings and nobody else's."""

import pytest

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType
from finetune_trainer.agent.security import TRACKERS, worker_environment
from finetune_trainer.prepare import tracker_check
from finetune_trainer.prepare.plan.rank_load import Load
from finetune_trainer.prepare.plan.speed import flops_per_token
from finetune_trainer.prepare.tracker_check import PACKAGES, check_trackers
from tests.unit.plan_models import decoder, encoder
from tests.unit.test_planner import planned

SECRETS = {"AWS_SECRET_ACCESS_KEY": "s3", "AWS_ACCESS_KEY_ID": "id", "FINETUNE_TOKEN": "gang", "HF_TOKEN": "hub"}


def test_a_tracker_gets_its_settings_and_the_network_and_no_key_of_ours() -> None:
    settings = {"WANDB_API_KEY": "key", "MLFLOW_TRACKING_URI": "http://m", "https_proxy": "http://p", "PATH": "/bin"}
    seen = worker_environment({**SECRETS, **settings}, ["wandb"])
    assert {"WANDB_API_KEY": "key", "https_proxy": "http://p", "PATH": "/bin"}.items() <= seen.items()
    assert not {*SECRETS, "MLFLOW_TRACKING_URI"} & seen.keys()
    assert not {*SECRETS, "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "https_proxy"} & worker_environment(settings).keys()
    everything = worker_environment(SECRETS, list(TRACKERS))
    assert not SECRETS.keys() & everything.keys()


def test_a_tracker_is_one_that_transformers_reports_to() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(PACKAGES) == set(INTEGRATION_TO_CALLBACK) - {"kubeflow"}, "kubeflow's progress is the operator's"
    assert set(TRACKERS) == set(PACKAGES) - {"tensorboard"}


@pytest.mark.parametrize(
    ("names", "says", "cure"),
    [
        (["wandbb"], "is 'wandbb', which is not a tracker", "did you mean wandb?"),
        (["all"], "is 'all', which is not a tracker", "write one of"),
        (["tensorboard", "none"], "is 'none'", ""),
        (["wandb"], "this image has no wandb", "pip install wandb"),
    ],
)
def test_a_tracker_that_cannot_be_told_is_refused(
    names: list[str], says: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_check, "_installed", lambda module: module == "tensorboardX")
    with pytest.raises(SpecError) as caught:
        check_trackers(names)
    [problem] = caught.value.problems
    assert says in problem.message
    assert cure in problem.cure
    assert problem.field.startswith("spec.training.report_to[")


@pytest.mark.parametrize("names", [[], ["none"], ["tensorboard"]])
def test_tensorboard_needs_nothing(names: list[str]) -> None:
    check_trackers(names)


def test_a_token_takes_six_operations_a_weight_and_four_under_an_adapter() -> None:
    shape = decoder()  # LLaMA's 7 billion
    full = Load(shape, MethodType.FULL, 3, 8, 1, 2048)
    scores = 12 * shape.layers * shape.hidden * 1000
    assert flops_per_token(full, 1000, 1.0) == pytest.approx(6 * shape.matrices + scores, rel=1e-6)
    lora = Load(shape, MethodType.LORA, 2, 8, 1, 2048)
    assert flops_per_token(lora, 1000, 1.0) == pytest.approx(4 * shape.matrices + 6 * lora.trained + scores)
    head = 32000 * 4096
    assert flops_per_token(lora, 1000, 1.0) - flops_per_token(lora, 1000, 0.25) == pytest.approx(4 * 0.75 * head)


def test_the_plan_knows_the_peak_of_a_gpu_that_it_knows() -> None:
    eight = {"limits": {"nvidia.com/gpu": 8}}
    known = planned(shape=decoder(), gpuType="A100-80GB", resourcesPerNode=eight)
    assert known.prediction.peak_flops == 312e12
    assert known.prediction.flops_per_token > 4 * 6e9
    assert planned(shape=encoder(2), resourcesPerNode=eight).prediction.peak_flops == 0, "assumed, not known"
    assert planned().prediction.peak_flops == 0, "nobody measures CPUs by it"
