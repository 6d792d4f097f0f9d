"""Embeddings end to end: pairs in, a model out that sentence-transformers loads, the same in every layout."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan, PlannedEmbedding
from finetune_trainer.worker.evaluation.retrieval import retrieval_scores
from tests.local.command import Job
from tests.local.harness import Bench, make_plan, write_dataset

EXACT = 1e-5
FIRST = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "iris", "jade", "karst", "lotus"]
SECOND = [
    "river",
    "stone",
    "cloud",
    "flame",
    "north",
    "coast",
    "tower",
    "bridge",
    "garden",
    "harbor",
    "meadow",
    "valley",
]


def pairs(path: Path) -> Path:
    """Rows whose texts name the same two of twelve things, each in the words of its side."""
    source = random.Random(11)
    chosen = source.sample([(a, b) for a in range(12) for b in range(12) if a != b], 110)
    rows = [{"query": f"{FIRST[a]} {FIRST[b]}", "positive": f"the {SECOND[a]} and the {SECOND[b]}"} for a, b in chosen]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def found(folder: str, rows: list[dict[str, str]]) -> dict[str, float]:
    """The scores of a model as sentence-transformers loads it."""
    model = SentenceTransformer(folder, device="cpu")
    sides = [
        torch.tensor(model.encode([row[name] for row in rows], prompt_name=prompt))
        for name, prompt in (("query", "query"), ("positive", "document"))
    ]
    number = torch.arange(len(rows))
    return retrieval_scores(torch.stack(sides, 1).numpy(), torch.stack([1 + number, 1000 + number], 1).numpy())


@pytest.mark.filterwarnings("ignore")  # of sentence-transformers and of what it imports
def test_a_tuned_model_finds_held_out_texts_and_sentence_transformers_loads_it(bert: Path, tmp_path: Path) -> None:
    train = pairs(tmp_path / "train.jsonl")
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    held_out, rest = rows[:30], rows[30:]
    for name, part in (("train", rest), ("eval", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    spec: dict[str, Any] = {
        "task": "embedding",
        "model": {"uri": f"file://{bert}"},
        "dataset": {"train": f"file://{train}", "eval": f"file://{tmp_path / 'eval.jsonl'}"},
        "embedding": {"queryPrompt": "query: ", "matryoshkaDims": [64, 16]},
        "method": {"type": "lora", "lora": {"r": 8, "lora_dropout": 0.0}},
        "training": {"learning_rate": 0.01, "num_train_epochs": 16, "global_batch_size": 16, "eval_steps": 20},
        "nodes": 2,
        "storage": {"uri": f"file://{tmp_path / 'storage'}"},
    }
    job = Job(tmp_path, spec)
    assert job.run() == ExitCode.OK, job.output
    [run] = [one.key for one in job.store.list("jobs/") if one.key.count("/") == 4 and one.key.endswith("/plan.json")]
    plan = json.loads(job.store.get(run))
    [negatives] = [choice for choice in plan["choices"] if choice["field"] == "negatives"]
    assert negatives["value"] == 15, negatives
    [artifact] = job.result["artifacts"]
    reported = artifact["metrics"]
    adapter = job.artifact(tmp_path / "adapter")
    before = found(str(bert), held_out)
    after = found(str(adapter), held_out)
    for name, value in after.items():
        assert value == pytest.approx(reported[f"eval_{name}"], abs=1e-4), name
    assert after["recall_at_1"] > before["recall_at_1"] + 0.3, (before, after)
    card = (adapter / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card
    assert "library_name: sentence-transformers" in card
    plain, peer = (
        code.replace('"."', repr(str(adapter))) for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    )
    said: list[dict[str, Any]] = [{"print": lambda value: None} for _ in range(2)]
    exec(plain, said[0])  # noqa: S102 - the code that the card shows
    exec(peer, said[1])  # noqa: S102
    assert float(said[0]["vectors"][0] @ said[0]["vectors"][1]) == pytest.approx(
        float(said[1]["queries"][0] @ said[1]["documents"][0]), abs=EXACT
    )


LAYOUTS = {  # world, ZeRO stage
    "one rank, ZeRO-1": (1, 1),
    "two ranks, ZeRO-2": (2, 2),
    "two ranks, ZeRO-3": (2, 3),
}


@pytest.mark.parametrize("method", [MethodType.FULL, MethodType.LORA])
def test_negatives_of_all_ranks_give_the_same_losses_and_gradients_in_every_layout(
    method: MethodType, bench: Bench, bert: Path, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.EMBEDDING)
    model, pooling = (bert, "mean") if method is MethodType.FULL else (llama, "last")
    runs = {}
    for name, (world, stage) in LAYOUTS.items():
        plan = plan_of(method, world, stage, pooling)
        runs[name] = bench.run(plan, model, data, tmp_path / f"{world}-{stage}")
        assert set(runs[name].exit_codes) == {ExitCode.OK}, f"{name}: {runs[name].logs}"
    reference = runs["one rank, ZeRO-1"]
    assert reference.losses()[6] < reference.losses()[1]
    for name, run in runs.items():
        for step, loss in reference.losses().items():
            assert run.losses()[step] == pytest.approx(loss, abs=EXACT), f"{name}, step {step}"
            assert run.grad_norms()[step] == pytest.approx(reference.grad_norms()[step], rel=1e-3), f"{name}: {step}"
        for measured, value in reference.evaluations()[-1].items():
            assert run.evaluations()[-1][measured] == pytest.approx(value, abs=1e-4), f"{name}: {measured}"


def plan_of(method: MethodType, world: int, stage: int, pooling: Any) -> Plan:
    return make_plan(
        Task.EMBEDDING,
        method,
        world=world,
        stage=stage,
        max_steps=6,
        checkpoint_every_steps=3,
        embedding=PlannedEmbedding(texts=3, dimension=64, pooling=pooling, dims=(64, 8)),
    )


def test_a_run_resumed_from_a_checkpoint_takes_the_steps_of_an_undisturbed_one(
    bench: Bench, bert: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.EMBEDDING)
    plan = plan_of(MethodType.FULL, 2, 2, "mean")
    whole = bench.run(plan, bert, data, tmp_path / "whole")
    halfway = tmp_path / "whole" / "node-{rank}" / checkpoint_name(3, 1)
    resumed = bench.run(plan, bert, data, tmp_path / "resumed", resume=halfway, generation=2)
    assert set(resumed.exit_codes) == {ExitCode.OK}, resumed.logs
    assert resumed.losses() == {step: loss for step, loss in whole.losses().items() if step > 3}
    assert resumed.evaluations()[-1] == whole.evaluations()[-1]
