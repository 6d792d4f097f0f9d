"""A real pretrained decoder, tuned by `finetune run` as a user types it: two nodes of one DeepSpeed rank each.

Tiny models of random weights show that bits are right. Here the result is of use: the loss on held-out text falls below
that of the base model, and plain libraries get the answers.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import ExitCode
from tests.gpu.jobs import Watched, job_of
from tests.local.command import Job
from tests.real import decoder, rows
from tests.real.record import LAST, machine, versions
from tests.support.events import scalars

STEPS, EVERY, BATCH = 12, 4, 4
KILLED_AFTER = 6  # a step between two checkpoints
VANILLA = Path(__file__).with_name("vanilla_decoder.py")
EXACT = 1e-3  # of a loss: batches of other shapes are summed in another order, through 18 layers
LARGEST_CODE_LOSS = 2.5  # of a model that knows Python; weights in the wrong place give more than 8
LIMIT = 1800  # seconds of a command, on machines that are slow and shared


@dataclass(frozen=True)
class Tuned:
    """A finished run; `seconds` are those of the command."""

    run: Watched
    seconds: float
    folder: Path

    @property
    def job(self) -> Job:
        return self.run.job

    def losses(self) -> dict[str, list[tuple[int, float]]]:
        """Return the losses of all steps and evaluations, as its charts in storage have them."""
        [charts] = (self.folder / "storage" / "jobs").glob("**/outputs/tensorboard")
        shown = scalars(charts)
        return {name: shown[name] for name in ("train/loss", "eval/loss")}


def job(base: Path, folder: Path, **lora: Any) -> Job:
    """Return a LoRA job on `base`; the learning rate and all that is not written here is the plan's choice."""
    folder.mkdir(parents=True, exist_ok=True)
    rows.write(folder, STEPS * BATCH)
    spec: dict[str, Any] = {
        "model": {"uri": f"file://{base}"},
        "dataset": {
            "train": f"file://{folder}/train.jsonl",
            "eval": f"file://{folder}/eval.jsonl",
            "chatTemplate": "gemma3",
        },
        "method": {"type": "lora", "lora": {"r": 8, **lora}},
        "training": {"max_steps": STEPS, "global_batch_size": BATCH, "eval_steps": STEPS // 2},
        "checkpoint": {"everySteps": EVERY},
        "nodes": 2,
    }
    return job_of(folder, spec, tiny=True)


def tune(base: Path, folder: Path, kill: bool = False) -> Tuned:
    """Run the job as prepare advises: the base model does not know the mark that ends a turn, so it is trained too."""
    began = time.monotonic()
    run = Watched.start(job(base, folder, trainable_token_indices=[decoder.END_OF_TURN]))
    try:
        if kill:
            run.wait("a step to be killed after", lambda seen: seen.step >= KILLED_AFTER, LIMIT)
            run.kill_worker()
        code = run.process.wait(LIMIT)
    finally:
        run.process.kill()
    assert code == ExitCode.OK, run.job.output
    return Tuned(run, time.monotonic() - began, folder)


@pytest.fixture(scope="module")
def base() -> Path:
    return decoder.base_model()


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    folder = tmp_path_factory.mktemp("tuned")
    yield tune(base, folder)
    shutil.rmtree(folder)  # three copies of the model


@pytest.fixture(scope="module")
def seen(base: Path, tuned: Tuned, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What plain libraries find, in another process."""
    folder = tmp_path_factory.mktemp("vanilla")
    held_out = [json.loads(line) for line in (tuned.folder / "eval.jsonl").read_text().splitlines()]
    orders = {
        "base": str(base),
        "adapter": str(tuned.job.artifact(folder / "adapter")),
        "rows": str(tuned.run.rows()),
        "code": rows.code(),
        "questions": [row["prompt"] for row in held_out[:4]],
    }
    (folder / "orders.json").write_text(json.dumps(orders))
    command = [sys.executable, "-W", "ignore", str(VANILLA), str(folder / "orders.json")]
    made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT)
    assert made.returncode == 0, made.stderr
    found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module", autouse=True)
def figures(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What the run measures, for `python -m tests.real --record`; only a run without failures leaves it."""
    failed = request.session.testsfailed
    found: dict[str, Any] = {"machine": machine(), "versions": versions(), "steps": STEPS, "global_batch": BATCH}
    yield found
    if request.session.testsfailed == failed:
        LAST.parent.mkdir(parents=True, exist_ok=True)
        LAST.write_text(json.dumps(found, indent=1) + "\n")


def test_prepare_names_the_mark_that_the_base_model_was_never_taught(base: Path, tmp_path: Path) -> None:
    """Its embedding is nearly parallel to those of thousands of unused tokens: an adapter alone cannot end a turn."""
    dry = job(base, tmp_path)
    dry = Job(tmp_path, {**dry.spec, "dryRun": True}, {**dry.environ, "COLUMNS": "400"})
    assert dry.run() == ExitCode.OK, dry.output
    assert "<end_of_turn> (106)" in dry.output
    assert "set spec.method.lora.trainable_token_indices: [106]" in dry.output
    shutil.rmtree(tmp_path)


def test_the_base_model_is_the_pretrained_one(seen: dict[str, Any], figures: dict[str, Any]) -> None:
    figures |= {"code_loss": seen["code_loss"]}
    assert seen["code_loss"] < LARGEST_CODE_LOSS, "per token of the standard library's json/decoder.py"


def test_the_loss_on_held_out_rows_falls_below_that_of_the_base_model(
    tuned: Tuned, seen: dict[str, Any], figures: dict[str, Any]
) -> None:
    losses, done = tuned.losses(), tuned.run.done()
    evaluations = [loss for _, loss in losses["eval/loss"]]
    figures |= {
        "base_loss": seen["base_loss"],
        "eval_losses": losses["eval/loss"],
        "train_losses": losses["train/loss"],
        "seconds": round(tuned.seconds),
        "train_seconds": round(done.train_seconds),
        "tokens_per_second": round(done.tokens_per_second, 1),
        "peak_mib": done.memory_bytes >> 20,
    }
    assert [step for step, _ in losses["train/loss"]] == list(range(1, STEPS + 1))
    assert evaluations[-1] < evaluations[0] < seen["base_loss"]
    assert evaluations[-1] < 0.8 * seen["base_loss"]


def test_plain_libraries_have_the_reported_loss_of_the_artifact(
    tuned: Tuned, seen: dict[str, Any], figures: dict[str, Any]
) -> None:
    [artifact] = tuned.job.result["artifacts"]
    reported = artifact["metrics"]["eval_loss"]
    figures |= {"reported_loss": reported, "tuned_loss": seen["tuned_loss"]}
    assert seen["tuned_loss"] == pytest.approx(reported, abs=EXACT)


def test_the_adapter_answers_held_out_questions_and_ends_its_turns(
    tuned: Tuned, seen: dict[str, Any], figures: dict[str, Any]
) -> None:
    held_out = [json.loads(line) for line in (tuned.folder / "eval.jsonl").read_text().splitlines()]
    figures["answers"] = [
        {"prompt": row["prompt"], "written": row["completion"], "base": before["text"], "tuned": after["text"]}
        for row, before, after in zip(held_out, seen["base_answers"], seen["answers"], strict=False)
    ]
    assert decoder.END_OF_TURN in seen["eos_token_id"]
    for answer in seen["answers"]:
        assert answer["last"] == decoder.END_OF_TURN, answer
        assert len(answer["text"].split()) >= 3, answer
        assert "\n" not in answer["text"].strip(), "one sentence, as in the rows"


def test_a_run_whose_worker_is_killed_in_mid_run_has_the_losses_of_an_undisturbed_one(
    base: Path, tuned: Tuned, tmp_path: Path, figures: dict[str, Any]
) -> None:
    killed = tune(base, tmp_path, kill=True)
    [recovery] = killed.run.done().recoveries
    figures |= {"killed_seconds": round(killed.seconds), "lost_steps": recovery.lost_steps}
    assert recovery.resumed_step == EVERY
    assert killed.losses() == tuned.losses()
    name = "adapter_model.safetensors"
    artifacts = [one.job.artifact(tmp_path / str(at)) / name for at, one in enumerate((tuned, killed))]
    assert artifacts[0].read_bytes() == artifacts[1].read_bytes()
    shutil.rmtree(tmp_path)
