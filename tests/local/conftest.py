"""What the local tier shares: tiny models and a warm zygote, each made once."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.contract import ExitCode
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from tests.local.agents import EVERY, STEPS, Agents
from tests.local.harness import Bench, make_plan, write_dataset
from tests.local.patched import Patched, patched
from tests.support.models import make_bert, make_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without dropout: ranks draw their own masks, so that losses could only be compared roughly."""
    folder = make_bert(tmp_path_factory.mktemp("bert"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()


@pytest.fixture(scope="session")
def patched_workers() -> Iterator[Patched]:
    with patched() as workers:
        yield workers


@pytest.fixture(scope="session")
def gang_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), Task.CAUSAL_LM)


@pytest.fixture(scope="session")
def gang_plan() -> Plan:
    return make_plan(
        Task.CAUSAL_LM,
        MethodType.LORA,
        max_steps=STEPS,
        checkpoint_every_steps=EVERY,
        keep_last=2,
        learning_rate=1e-3,
        lora={"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear"},
    )


@pytest.fixture(scope="session")
def undisturbed_gang(
    tmp_path_factory: pytest.TempPathFactory, gang_plan: Plan, llama: Path, gang_data: Path
) -> Iterator[Agents]:
    told = {"PYTHONPROFILEIMPORTTIME": "1"}  # each process logs what it imports
    with Agents.prepared(tmp_path_factory.mktemp("undisturbed-gang"), gang_plan, llama, gang_data, told) as agents:
        agents.start()
        assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
        yield agents
