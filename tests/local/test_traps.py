"""Traps of the libraries under a worker, each with a test that fails without its cure.

Here:
    ACCELERATE_USE_CPU alone leaves DeepSpeed in silence; init_distributed before TrainingArguments, and use_cpu; the
    DeepSpeed configuration is alive while a ZeRO-3 model is loaded; torch_adam, no shared-memory collectives: nothing
    is compiled; no telemetry, nothing fetched from the hub at run time; no attention that downloads its kernels;
    get_last_checkpoint, enable_jit_checkpoint and load_best_model_at_end are not used; rows beyond the plan's length.
Elsewhere:
    losses of two ranks are those of one, for BERT and T5 too            test_worker, test_exactness
    a hidden NaN (logging_nan_inf_filter), a step by it, its row         test_engine
    float16 on CPU                                                       test_planner, test_deepspeed_config
    new modules are trained; set_seed before the adapter; autocast       test_worker, test_methods
    packed documents do not see each other                               test_exactness
    SIGTERM to one rank; a checkpoint that is not complete               test_agents, test_gang
    an all-zero or all-one loss mask                                     test_tokenize, tests/bad_inputs
    what the zygote may not import; bitsandbytes                         test_modules, test_methods
    numbers of YAML 1.1                                                  test_api_yaml12
    boto3's transfer client                                              test_storage
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import finetune_trainer
from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_api.v1alpha1.library_names import TRAINING_NO_COUNTERPART, TRAINING_OWNED
from finetune_trainer.agent.security import worker_environment
from finetune_trainer.checkpoints import disk
from finetune_trainer.checkpoints.marker import Marker, marker_name
from tests.local.harness import Bench, make_plan, write_dataset
from tests.support.plans import revised

ROOT = Path(__file__).parents[2]
NEVER_CALLED = ("get_last_checkpoint", "JITCheckpointCallback", "flash_attention_2", "flash_attention_3")


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> dict[str, Any]:
    """What a rank of ZeRO-3 finds in a process of its own (tests/local/trapped.py)."""
    scratch = tmp_path_factory.mktemp("trapped")
    data = write_dataset(scratch / "data", Task.CAUSAL_LM)
    compiled = scratch / "extensions"
    compiled.mkdir()
    environ = {**worker_environment(os.environ), "TORCH_EXTENSIONS_DIR": str(compiled), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.local.trapped", str(llama), str(data), str(scratch / "run")]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180, cwd=ROOT)
    lines = [line for line in ran.stdout.splitlines() if line.startswith('{"')]
    assert ran.returncode == 0, ran.stderr[-3000:]
    facts: dict[str, Any] = json.loads(lines[-1])
    return facts


def test_a_run_that_leaves_deepspeed_is_stopped(rank: dict[str, Any]) -> None:
    assert rank["engine"] == "DeepSpeedEngine"
    assert rank["not on DeepSpeed"] == "NotOnDeepSpeed"


def test_a_model_for_zero_3_is_sharded_while_it_is_loaded(rank: dict[str, Any]) -> None:
    assert rank["ZeRO-3 while loading"]
    assert rank["weights sharded while loading"]


def test_nothing_is_compiled_at_the_start_of_a_worker(rank: dict[str, Any]) -> None:
    assert rank["compiled"] == []


def test_no_kernel_of_the_hub_is_the_attention(rank: dict[str, Any]) -> None:
    assert "flash" not in rank["attention"]


def test_transformers_sees_all_ranks_on_cpu(bench: Bench, llama: Path, tmp_path: Path) -> None:
    """Without use_cpu it sees a world of one: each rank would take every row, and DeepSpeed another global batch."""
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    config = {"zero_optimization": {"stage": 2}, "train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, world=2, max_steps=2, eval_every_steps=0)
    run = bench.run(revised(plan, deepspeed=config), llama, data, tmp_path / "run")
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs


def test_a_worker_asks_the_network_for_nothing() -> None:
    environ = worker_environment({"HF_HUB_DISABLE_TELEMETRY": "0", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "secret"})
    assert environ["HF_HUB_OFFLINE"] == "1"
    assert environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert "HF_TOKEN" not in environ


def test_what_transformers_does_without_asking_all_ranks_is_never_used() -> None:
    """A highest number says nothing of completeness; a signal that one rank hears is a deadlock for the others."""
    for path in (Path(finetune_trainer.__file__).parent).rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not names & set(NEVER_CALLED), path
    refused = {*TRAINING_OWNED, *TRAINING_NO_COUNTERPART}
    assert {"enable_jit_checkpoint", "load_best_model_at_end", "resume_from_checkpoint"} <= refused


def test_a_checkpoint_with_the_highest_number_counts_only_if_every_rank_has_finished_it(tmp_path: Path) -> None:
    for step, ranks in ((4, (0, 1)), (8, (0,))):
        folder = tmp_path / checkpoint_name(step, 1)
        folder.mkdir()
        for number in ranks:
            marker = Marker(step=step, generation=1, rank=number, samples=step * 8)
            (folder / marker_name(number)).write_text(marker.to_json())
    assert [saved.step for saved in disk.complete(tmp_path, node_rank=0, local_ranks=2)] == [4]


def test_a_row_that_is_longer_than_the_plan_says_is_refused_in_a_sentence(
    bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, world=1, max_length=16)
    run = bench.run(plan, llama, data, tmp_path / "run")
    assert set(run.exit_codes) == {ExitCode.DATA_ERROR}, run.logs
    [message] = [event.message for event in run.events if event.event == "error"]
    assert "tokens; the maximum of this run is 16" in message
    assert "row " in message
