"""Architectures without a record: a tiny model of each is trained in prepare; then the job trains, or is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from finetune_api.contract import ExitCode
from finetune_api.errors import ModelError
from finetune_api.messages import MethodType, Task
from finetune_api.tasks import TASKS
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.architecture_probe import answer_in_a_process
from finetune_trainer.prepare.prepare_stage import inspect
from finetune_trainer.probe.question import ProbeQuestion, ProbeStage
from tests.local.command import Job
from tests.support import vanilla
from tests.support.models.configurations import config_of
from tests.support.models.unproven import make_camembert, make_mamba, make_starcoder2
from tests.support.prepared import plain

PROBED = "is not one of the families that tests train"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the answers of probes are kept: not where those of other runs are."""
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


def spec_of(folder: Path, model: Path, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    train = folder / "train.jsonl"
    train.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {
        "model": {"uri": f"file://{model}"},
        "dataset": {"train": f"file://{train}", "eval": {"split": 0.2}},
        "method": {"type": "lora"},
        "storage": {"uri": f"file://{folder}/store"},
        **changes,
    }


def job_of(spec: dict[str, Any]) -> FineTuneJob:
    whole = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "one"}, "spec": spec}
    return FineTuneJob.model_validate_json(json.dumps(whole))


SUMS = [{"prompt": f"What is {n} + 1?", "completion": f" It is {n + 1}."} for n in range(40)]


def test_an_architecture_without_a_record_is_probed_once_and_trains(tmp_path: Path, cache: dict[str, str]) -> None:
    model = make_starcoder2(tmp_path / "model")
    training = {"max_steps": 4, "global_batch_size": 4, "learning_rate": 1e-3}
    job = Job(tmp_path, spec_of(tmp_path, model, SUMS, training=training, nodes=1), cache)
    assert job.start().wait(600) == ExitCode.OK, job.output
    assert PROBED in job.output
    [rows] = [entry.key for entry in job.store.list("datasets/") if entry.key.endswith("eval-00000.arrow")]
    adapter, data = job.artifact(tmp_path / "adapter"), tmp_path / "data"
    for name in (rows, rows.replace(".arrow", ".index.arrow"), rows.replace("eval-00000.arrow", "shards.json")):
        job.store.get_file(name, data / Path(name).name)
    reported = job.result["artifacts"][0]["metrics"]["eval_loss"]
    assert vanilla.token_loss(model, plain(data, "eval"), adapter) == pytest.approx(reported, abs=1e-4)
    assert list(job.store.list("probes/")), "the answer is kept for jobs on other machines"
    lines: list[str] = []
    inspect(job_of(dict(job.spec)), cache, lines.append)
    assert not [line for line in lines if PROBED in line]


def test_a_row_ends_where_the_positions_after_the_padding_token_do(tmp_path: Path, cache: dict[str, str]) -> None:
    """130 positions, of which 2 hold no token: a row of 130 tokens is one index beyond the embedding."""
    model = make_camembert(tmp_path / "model")
    rows = [{"text": f"{n} " + "from list number item " * 60, "label": "even" if n % 2 else "odd"} for n in range(30)]
    plan = inspect(job_of(spec_of(tmp_path, model, rows, task="classification")), cache).plan
    assert (plan.max_length, plan.dataset.train.longest, plan.model.max_positions) == (128, 128, 128)
    loaded = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        loaded(input_ids=torch.full((1, plan.max_length), 7))
        with pytest.raises((IndexError, RuntimeError)):
            loaded(input_ids=torch.full((1, plan.max_length + 1), 7))


def test_an_architecture_that_fails_is_refused_with_the_place_and_a_cure(tmp_path: Path, cache: dict[str, str]) -> None:
    model = make_mamba(tmp_path / "model")
    with pytest.raises(ModelError) as refused:
        inspect(job_of(spec_of(tmp_path, model, SUMS)), cache)
    [problem] = refused.value.problems
    assert (problem.code, problem.field) == ("ArchitectureNotSupported", "spec.model")
    assert "mamba with task causal-lm, method lora" in problem.message
    assert "out_proj" in problem.message, "the library's last line"
    assert "spec.method.lora.target_modules" in problem.cure


@pytest.mark.parametrize(
    ("model_type", "task", "method", "unreached"),
    [
        ("mpnet", Task.EMBEDDING, MethodType.LORA, ()),
        ("xlm-roberta", Task.TOKEN_CLASSIFICATION, MethodType.FULL, ()),
        ("gemma3", Task.EMBEDDING, MethodType.FULL, ("multi_modal_projector", "vision_tower")),
    ],
)
def test_a_tiny_model_learns_the_jobs_own_task(
    model_type: str, task: Task, method: MethodType, unreached: tuple[str, ...], tmp_path: Path
) -> None:
    """The bare Gemma 3 has no `model.` before its names: those of its language model would freeze nothing."""
    kind = {"task_type": str(TASKS[task].peft_type)}
    lora = {"r": 4, "target_modules": "all-linear", **kind} if method is MethodType.LORA else {}
    config = config_of(model_type)
    question = ProbeQuestion(config=config, task=task, method=method, lora=lora, zero_stage=2)
    answer, final = answer_in_a_process(question, tmp_path)
    assert (answer.failed, answer.reason, final) == (None, "", True)
    assert answer.unreached == unreached


def test_a_classifier_that_answers_by_the_rows_beside_a_row_is_refused_with_that_reason(tmp_path: Path) -> None:
    question = ProbeQuestion(
        config=config_of("t5gemma"), task=Task.CLASSIFICATION, method=MethodType.FULL, lora={}, zero_stage=2
    )
    answer, final = answer_in_a_process(question, tmp_path)
    assert (answer.failed, final) == (ProbeStage.RELOAD, True)
    assert "answers otherwise where padding follows a row" in answer.reason
