"""Evaluations of real runs: scores as the libraries make them of the whole split at once, answers as a vanilla model
gives them, the same on any number of ranks; and runs that stop early and overfit."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from sacrebleu import corpus_chrf
from sklearn.metrics import classification_report, f1_score, mean_squared_error
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from finetune_api.contract import ExitCode, File, checkpoint_name
from finetune_api.messages import DatasetFacts, MethodType, ProblemType, SplitFacts, Task
from finetune_api.plan import Plan, PlannedAnswers
from finetune_trainer.evaluations.records import EvalGroups, EvaluationRecord
from finetune_trainer.model.families import family_of
from finetune_trainer.process.orders import OVERFITTING_SINCE
from finetune_trainer.worker.evaluation.answers import Generator
from finetune_trainer.worker.evaluation.questions import Question
from tests.local.agents import Agents
from tests.local.harness import Bench, Run, make_plan
from tests.support.models import MAKERS, make_bert, make_gpt2
from tests.support.plans import revised

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT

LABELS = ("animal", "colour", "number")
KINDS = {
    ProblemType.SINGLE_LABEL: pa.int32(),
    ProblemType.MULTI_LABEL: pa.list_(pa.int32()),
    ProblemType.REGRESSION: pa.float32(),
}
IDS = pa.list_(pa.int32())
EVAL_ROWS = 23  # no multiple of any batch


def write(folder: Path, kinds: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> Path:
    """`train.arrow` and `eval.arrow` of some rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in rows.items():
        table = pa.table({name: pa.array([line[name] for line in lines], kind) for name, kind in kinds.items()})
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return folder


def splits(row: Any, train: int = 64) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [row(random.Random(f"{name}-{number}")) for number in range(count)]
        for name, count in (("train", train), ("eval", EVAL_ROWS))
    }


def ids_of(source: random.Random, label: int) -> list[int]:
    return [5 + label] + [20 + label * 30 + source.randrange(8) for _ in range(source.randrange(6, 30))]


def labelled(folder: Path, problem: ProblemType) -> Path:
    def row(source: random.Random) -> dict[str, Any]:
        label = source.randrange(3)
        several = sorted({label, source.randrange(3)}) if source.random() < 0.8 else []
        target = {
            ProblemType.SINGLE_LABEL: label,
            ProblemType.MULTI_LABEL: several,
            ProblemType.REGRESSION: label + source.random() / 4,
        }[problem]
        return {"input_ids": ids_of(source, label), "label": target}

    return write(folder, {"input_ids": IDS, "label": KINDS[problem]}, splits(row))


def facts(problem: ProblemType | None = None) -> DatasetFacts:
    split = SplitFacts(rows=64, tokens=64 * 18, trained_tokens=64, longest=30)
    labels = () if problem in (None, ProblemType.REGRESSION) else LABELS
    held_out = split.model_copy(update={"rows": EVAL_ROWS})
    return DatasetFacts(sha256="0" * 64, train=split, eval=held_out, labels=labels, problem_type=problem)


def asked(folder: Path, task: Task, model: Path, rows: int = 64) -> Path:
    """The answer says a word of the prompt three times; a few rows suffice to learn to end it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = {token: tokenizer.decode([token]).strip() for token in range(tokenizer.vocab_size)}
    words = [token for token, text in texts.items() if text.isalpha() and len(text) > 2][:8]
    end = tokenizer.eos_token_id

    def row(source: random.Random) -> dict[str, Any]:
        word = source.choice(words[:3])
        prompt = [source.choice(words[3:]) for _ in range(source.randrange(1, 6))] + [word]
        answer = [word] * 3 + [end]
        if task is Task.SEQ2SEQ:
            return {"input_ids": [*prompt, end], "labels": answer}
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}

    return write(folder, {"input_ids": IDS, "labels": IDS}, splits(row, rows))


def last(run: Run) -> dict[str, float]:
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs
    return run.evaluations()[-1]


def final(work: Path, step: int = 12) -> Path:
    return work / "node-0" / checkpoint_name(step, 1)


def table(work: Path, step: int = 12) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(
        (work / "outputs" / "evaluation" / f"{checkpoint_name(step)}.json").read_text()
    )
    return written


def eval_rows(data: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_file(str(data / "eval.arrow")).read_all().to_pylist()
    return rows


def assert_same(one: dict[str, float], other: dict[str, float], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("problem", list(ProblemType), ids=lambda problem: str(problem.value))
def test_a_classification_is_scored_as_scikit_learn_scores_all_rows_at_once(
    problem: ProblemType, bench: Bench, bert: Path, tmp_path: Path
) -> None:
    data = labelled(tmp_path / "data", problem)
    plan = make_plan(Task.CLASSIFICATION, MethodType.FULL, world=2, dataset=facts(problem), learning_rate=2e-3)
    metrics = last(bench.run(plan, bert, data, tmp_path / "run"))
    model = AutoModelForSequenceClassification.from_pretrained(final(tmp_path / "run")).eval()
    rows = eval_rows(data)
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows])
    if problem is ProblemType.SINGLE_LABEL:
        truth = [row["label"] for row in rows]
        predicted = logits.argmax(-1).numpy()
        report = classification_report(
            truth, predicted, labels=range(3), target_names=LABELS, output_dict=True, zero_division=0.0
        )
        assert metrics["eval_loss"] == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits, torch.tensor(truth))), abs=1e-5
        )
        assert metrics["eval_accuracy"] == pytest.approx(np.mean(predicted == truth))
        assert metrics["eval_macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
        lines = {line["label"]: line for line in table(tmp_path / "run")["per_class"]}
        for label in LABELS:
            assert lines[label]["f1"] == pytest.approx(report[label]["f1-score"])
            assert lines[label]["support"] == report[label]["support"]
    elif problem is ProblemType.MULTI_LABEL:
        several = np.array([[label in row["label"] for label in range(3)] for row in rows])
        guessed = torch.sigmoid(logits).numpy() > 0.5
        assert metrics["eval_micro_f1"] == pytest.approx(f1_score(several, guessed, average="micro", zero_division=0.0))
        assert metrics["eval_macro_f1"] == pytest.approx(f1_score(several, guessed, average="macro", zero_division=0.0))
        assert metrics["eval_exact_match"] == pytest.approx(np.mean((several == guessed).all(axis=1)))
    else:
        numbers = [row["label"] for row in rows]
        assert metrics["eval_mse"] == pytest.approx(mean_squared_error(numbers, logits.numpy().ravel()), rel=1e-4)
        assert metrics["eval_loss"] == pytest.approx(metrics["eval_mse"], rel=1e-5)


def test_a_masked_language_model_is_scored_by_the_tokens_it_finds_again(bench: Bench, tmp_path: Path) -> None:
    model_folder = make_bert(
        tmp_path / "bert",
        auto="AutoModelForMaskedLM",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    data = write(tmp_path / "data", {"input_ids": IDS}, splits(lambda source: {"input_ids": ids_of(source, 0)}))
    plans = [make_plan(Task.MASKED_LM, MethodType.FULL, world=world, dataset=facts()) for world in (1, 2)]
    one, two = (last(bench.run(plan, model_folder, data, tmp_path / str(plan.world_size))) for plan in plans)
    assert_same(one, two)
    assert one["eval_perplexity"] == pytest.approx(math.exp(one["eval_loss"]))
    from finetune_trainer.worker.batches.masking import EVALUATED, masking_of

    model = AutoModelForMaskedLM.from_pretrained(final(tmp_path / "1")).eval()
    rule = masking_of(plans[0], AutoTokenizer.from_pretrained(model_folder))
    found = hidden = 0
    for position, row in enumerate(eval_rows(data)):
        read, labels = rule.hide(row["input_ids"], EVALUATED, position)
        with torch.no_grad():
            guessed = model(input_ids=torch.tensor(read[None].astype(np.int64))).logits[0].argmax(-1).numpy()
        found += int((guessed == labels)[labels >= 0].sum())
        hidden += int((labels >= 0).sum())
    assert one["eval_accuracy"] == pytest.approx(found / hidden)


# ---------------------------------------------------------------- answers


@dataclass(frozen=True)
class Answering:
    family: str
    method: MethodType
    layouts: tuple[tuple[int, int], ...]  # world size, ZeRO stage
    training: tuple[tuple[str, bool], ...] = ()

    def __str__(self) -> str:
        return "-".join((self.family, self.method, *(name for name, _ in self.training)))

    @property
    def task(self) -> Task:
        return family_of(self.family).tasks[0]


RECOMPUTED = (("activation_checkpointing", True),)  # it forbids a cache while training
OTHERS = [name for name in MAKERS if not family_of(name).reads_both_ways and name not in ("llama", "t5")]


@pytest.mark.parametrize(
    "case",
    [
        Answering("llama", MethodType.LORA, ((1, 2), (2, 3))),
        Answering("t5", MethodType.FULL, ((2, 2), (2, 3))),
        *(
            pytest.param(Answering(family, method, ((1, 2), (2, 3)), RECOMPUTED), marks=pytest.mark.matrix)
            for family, method in (("llama", MethodType.LORA), ("t5", MethodType.FULL))
        ),
        *(
            pytest.param(Answering(family, method, ((1, 2), (2, 2), (2, 3))), marks=pytest.mark.matrix)
            for family in OTHERS
            for method in (MethodType.LORA, MethodType.FULL)
        ),
    ],
    ids=str,
)
def test_answers_are_those_of_a_vanilla_model_and_scored_as_sacrebleu_does(
    case: Answering, bench: Bench, tmp_path: Path
) -> None:
    causal = case.task is Task.CAUSAL_LM
    model = MAKERS[case.family](tmp_path / "model")
    data = asked(tmp_path / "data", case.task, model)
    evaluation = PlannedAnswers(generate=EVAL_ROWS, max_new_tokens=6, samples=3)
    rate = 2e-2 if case.method is MethodType.LORA else 1e-2
    seen = []
    for world, stage in case.layouts:
        plan = make_plan(
            case.task,
            case.method,
            world=world,
            stage=stage,
            dataset=facts(),
            evaluation=evaluation,
            learning_rate=rate,
            training=dict(case.training),
        )
        work = tmp_path / f"{world}-{stage}"
        seen.append((last(bench.run(plan, model, data, work)), work))
    for other, _ in seen[1:]:
        assert_same(seen[0][0], other, 1e-3)  # twelve large steps apart, which no two layouts round alike
    metrics, work = seen[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    auto: Any = AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM
    vanilla: Any
    if case.method is MethodType.LORA:
        vanilla = PeftModel.from_pretrained(auto.from_pretrained(model), final(work)).eval()
    else:
        vanilla = auto.from_pretrained(final(work)).eval()
    answers, references, prompts = [], [], []
    for row in eval_rows(data):
        start = row["labels"].count(-100)
        prompt = row["input_ids"][:start] if causal else row["input_ids"]
        ids = torch.tensor([prompt])
        made = vanilla.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=4,
            pad_token_id=tokenizer.pad_token_id or 0,
            eos_token_id=tokenizer.eos_token_id,
        )
        prompts.append(tokenizer.decode(prompt, skip_special_tokens=not causal).strip())
        answers.append(tokenizer.decode(made[0, len(prompt) if causal else 1 :], skip_special_tokens=True).strip())
        references.append(tokenizer.decode(row["labels"][start:], skip_special_tokens=True).strip())
    lines = (work / "outputs" / "samples" / f"{checkpoint_name(12)}.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"row": row, "prompt": prompts[row], "reference": references[row], "answer": answers[row]} for row in range(3)
    ]
    assert metrics["eval_chrf"] == pytest.approx(corpus_chrf(answers, [references]).score)
    assert metrics["eval_exact_match"] == pytest.approx(
        sum(one == other for one, other in zip(answers, references, strict=True)) / EVAL_ROWS
    )


def answered(
    model: Path, prompt: list[int], reference: list[int], ends: tuple[int, ...] = (), **facts_of_model: int
) -> list[int]:
    """What a vanilla model is made to say to one prompt."""
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, answers=PlannedAnswers(generate=1, max_new_tokens=50))
    facts = plan.dataset.model_copy(update={"ends": ends})
    plan = revised(plan, model=plan.model.model_copy(update=facts_of_model), dataset=facts)
    question = Question(0, np.array(prompt), np.array(reference))
    generator = Generator(plan, AutoTokenizer.from_pretrained(model))
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    return generator(network, [question], 0, 1, torch.device("cpu"))[0]


def test_an_answer_ends_where_the_positions_of_the_model_do(tmp_path: Path) -> None:
    model = make_gpt2(tmp_path / "gpt2")
    prompt, reference = [7] * 250, [9] * 20
    assert len(answered(model, prompt, reference, max_positions=256)) <= 6
    with pytest.raises(IndexError):
        answered(model, prompt, reference)


def test_ranks_that_generate_at_the_same_time_stop_at_the_same_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ZeRO-3 a rank goes on until the last has ended: with a limit of its own it would leave its positions."""
    model = make_gpt2(tmp_path / "gpt2")
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, answers=PlannedAnswers(generate=8, max_new_tokens=200))
    plan = revised(plan, model=plan.model.model_copy(update={"max_positions": 256}))
    asked = [Question(at, np.full(length, 7), np.full(100, 9)) for at, length in enumerate(range(20, 250, 12))]
    generator = Generator(plan, AutoTokenizer.from_pretrained(model))
    limits: list[int] = []

    def noted(_: Any, batch: list[Question], config: GenerationConfig, *__: Any) -> list[list[int]]:
        limits.append(config.max_new_tokens)
        return [[] for _ in batch]

    monkeypatch.setattr(generator, "_generate", noted)
    by_rank = []
    for rank in range(2):
        limits.clear()
        generator(torch.nn.Module(), asked, rank, 2, torch.device("cpu"))
        by_rank.append(list(limits))
    assert by_rank[0] == by_rank[1]
    assert len(set(by_rank[0])) > 1, "those that are asked the shortest prompts may answer longer"


def test_an_answer_ends_where_the_artifact_ends_it_and_nowhere_else(tmp_path: Path) -> None:
    """hiyouga/LlamaFactory#7454, #7943: the score was of answers that ended, and the model went on and on."""
    model = make_gpt2(tmp_path / "gpt2")
    said = answered(model, [7] * 10, [9] * 8)
    turn = said[3]
    assert answered(model, [7] * 10, [9] * 6 + [turn, 5]) == said, "a reference does not end an answer"
    assert answered(model, [7] * 10, [9] * 8, ends=(turn,)) == said[: said.index(turn)]


# ---------------------------------------------------------------- what follows from evaluations


def overfitting_data(folder: Path) -> Path:
    """A handful of rows without any rule: what is learnt of them is wrong of others."""

    def row(source: random.Random) -> dict[str, Any]:
        ids = [source.randrange(5, 400) for _ in range(16)]
        return {"input_ids": ids, "labels": ids}

    return write(folder, {"input_ids": IDS, "labels": IDS}, splits(row, train=8))


def overfitting_plan(**changes: Any) -> Plan:
    return make_plan(
        Task.CAUSAL_LM,
        MethodType.FULL,
        dataset=facts(),
        **{"max_steps": 24, "eval_every_steps": 2, "checkpoint_every_steps": 24, "learning_rate": 2e-2, **changes},
    )


def test_a_run_that_learns_a_few_rows_by_heart_is_said_to_overfit(bench: Bench, llama: Path, tmp_path: Path) -> None:
    run = bench.run(overfitting_plan(), llama, overfitting_data(tmp_path / "data"), tmp_path / "run")
    evals = {event.step: event.values for event in run.events if event.event == "eval" and event.rank == 0}
    losses = {step: values["eval_loss"] for step, values in evals.items()}
    turned = min(losses, key=lambda step: losses[step])
    told = {step: values.get(OVERFITTING_SINCE) for step, values in evals.items()}
    assert told[24] == turned, (losses, told)
    assert [since for step, since in told.items() if step < turned + 6] == [None] * (turned // 2 + 2)


def test_a_run_stops_early_at_a_checkpoint_and_is_done(llama: Path, tmp_path: Path) -> None:
    plan = overfitting_plan(early_stopping_patience=3)
    with Agents.prepared(tmp_path, plan, llama, overfitting_data(tmp_path / "data")) as agents:
        agents.start()
        assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
        done = agents.done()
        losses = {evaluation.step: evaluation.values["eval_loss"] for evaluation in done.evals}
        best = min(losses, key=lambda step: losses[step])
        assert done.step == best + 3 * 2 < plan.schedule.max_steps
        sentence = f"stopped early at step {done.step}: eval_loss did not improve for 3 evaluations"
        assert (done.stopped_early, done.overfitting_since, done.eta_seconds) == (sentence, best, None)
        assert {facts.step: facts.best for facts in done.checkpoints}[best]
        assert done.checkpoints[-1].step == done.step


@pytest.mark.matrix
def test_a_gang_that_is_lost_after_it_stopped_early_is_done_at_the_same_step(llama: Path, tmp_path: Path) -> None:
    plan = overfitting_plan(early_stopping_patience=3)
    with Agents.prepared(tmp_path, plan, llama, overfitting_data(tmp_path / "data")) as agents:
        agents.start()
        assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
        done = agents.done()
        agents.store.delete([agents.prefix + File.DONE])
        agents.start()
        assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
        again = agents.done()
        assert (again.step, again.stopped_early) == (done.step, done.stopped_early)
        assert again.overfitting_since == done.overfitting_since
        assert [facts.step for facts in again.checkpoints] == [facts.step for facts in done.checkpoints]


def test_a_run_that_had_stopped_early_does_not_train_on_when_it_is_started_again(
    bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = overfitting_data(tmp_path / "data")
    first = bench.run(overfitting_plan(early_stopping_patience=3), llama, data, tmp_path / "run")
    last_step = max(first.losses())
    assert last_step < 24
    saved = tmp_path / "run" / "node-{rank}" / checkpoint_name(last_step, 1)
    for world in (2, 1):
        plan = overfitting_plan(early_stopping_patience=3, world=world)
        again = bench.run(plan, llama, data, tmp_path / f"again-{world}", resume=saved, generation=1 + world)
        assert set(again.exit_codes) == {ExitCode.OK}, again.logs
        assert again.losses() == {}


# ---------------------------------------------------------------- groups of people


def test_a_skew_that_training_makes_larger_is_recorded_with_its_interval(
    bench: Bench, bert: Path, tmp_path: Path
) -> None:
    """Rows hold a mention and noise, two thirds of one label: a classifier answers with that label alone."""

    def row(number: int) -> dict[str, Any]:
        source = random.Random(number)
        group = number % 2
        label = group if source.random() < 0.67 else 1 - group
        return {"input_ids": [5 + group] * 4 + [source.randrange(60, 90) for _ in range(4)], "label": label}

    rows = {"train": [row(number) for number in range(64)], "eval": [row(number) for number in range(1000, 1200)]}
    data = write(tmp_path / "data", {"input_ids": IDS, "label": KINDS[ProblemType.SINGLE_LABEL]}, rows)
    groups = EvalGroups(rows=tuple(range(200)), groups={"women": tuple(range(0, 200, 2)), "Roma": (1, 3)})
    (data / File.EVAL_GROUPS).write_text(groups.model_dump_json())
    made = facts(ProblemType.SINGLE_LABEL)
    plan = make_plan(
        Task.CLASSIFICATION,
        MethodType.FULL,
        dataset=made.model_copy(update={"eval": made.train.model_copy(update={"rows": 200})}),
        learning_rate=2e-3,
    )
    last(bench.run(plan, bert, data, tmp_path / "run"))
    record = EvaluationRecord.model_validate(table(tmp_path / "run"))
    assert record.groups == ("women",)
    worst = record.amplification[0]
    assert (worst.group, worst.amplified, worst.rows) == ("women", True, 100)
    assert worst.truth == pytest.approx(np.mean([line["label"] == 0 for line in rows["eval"][::2]]), abs=1e-4)
    assert worst.predicted > worst.truth or worst.predicted_elsewhere > worst.truth_elsewhere
    assert 0.05 <= worst.low < worst.value
