"""What is counted is the sum of its parts, however rows are cut; what is sampled is the same in every process."""

import pickle
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.messages import Task
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed import sample
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.observed.fingerprints import keys
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.observed.texts import sides
from finetune_trainer.prepare.quality.context import Context
from finetune_trainer.prepare.quality.judge import judge
from tests.unit.quality_sets import UNKNOWN, chats, encode, labelled, observed, pairs, sentence

CONTEXT = {
    labelled: Context(task=Task.CLASSIFICATION, max_length=256),
    pairs: Context(task=Task.CAUSAL_LM, max_length=256),
    chats: Context(task=Task.CAUSAL_LM, max_length=256),
}


def keys_of(texts: list[str]) -> np.ndarray:
    return keys([text.encode() for text in texts])


def messy(make, rows: int) -> list[Example]:
    """Rows with copies, marks, unknown characters and long ones among them."""
    own = make(rows, seed=3)
    random_ = random.Random(4)
    if make is not chats:
        own = [
            replace(
                row,
                text=random_.choice((row.text, own[0].text, row.text + " <|im_end|> ☃", sentence(random_, 300, 300))),
            )
            for row in own
        ]
    return own


@settings(max_examples=25, deadline=None)
@given(
    make=st.sampled_from([labelled, pairs, chats]),
    cuts=st.lists(st.integers(0, 120), max_size=8),
    rows=st.sampled_from([0, 120]),
)
def test_the_report_does_not_depend_on_how_rows_were_cut(make, cuts: list[int], rows: int) -> None:
    examples = messy(make, 120)
    parts = Observation(unk_id=UNKNOWN, rows=rows)
    borders = [0, *sorted(cuts), len(examples)]
    for start, end in pairwise(borders):
        part = Observation(unk_id=UNKNOWN, rows=rows, file="a.jsonl")
        part.add(examples[start:end], [encode(example) for example in examples[start:end]])
        parts.merge(pickle.loads(pickle.dumps(part)))
    whole = observed(examples, chunk=len(examples), rows=rows, file="a.jsonl")
    assert judge(parts, None, CONTEXT[make]).to_json() == judge(whole, None, CONTEXT[make]).to_json()


def test_the_sample_keeps_the_least_keys_and_the_first_of_equal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "ROWS", 50)
    examples = pairs(400) + [replace(row, line=1000 + row.line) for row in pairs(400)]
    seen = observed(examples, chunk=64).sample.rows()
    every = sorted(
        zip(keys([sides(row, False).whole.encode() for row in examples[:400]]).tolist(), range(1, 401), strict=True)
    )
    assert [row.line for row in seen] == [line for _, line in every[:50]]


def test_a_known_number_of_rows_keeps_chunks_small_and_the_sample_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.prepare.observed.observation.ROWS", 100)
    monkeypatch.setattr(sample, "ROWS", 100)
    examples = pairs(4000)
    part = Observation(rows=4000)
    part.add(examples[:1000], [encode(example) for example in examples[:1000]])
    assert len(part.sample.rows()) < 60
    kept = [row.line for row in observed(examples, rows=4000).sample.rows()]
    assert kept == [row.line for row in observed(examples).sample.rows()][: len(kept)]
    assert len(kept) > 80


def test_near_twins_mostly_fall_into_the_sample_together() -> None:
    texts = [row.text for row in labelled(2000)]
    twins = [f"{text.rsplit(' ', 1)[0]} otherwise" for text in texts]
    assert np.mean(keys_of(texts) == keys_of(twins)) > 0.75


def test_keys_spread_evenly_for_short_texts_and_for_long_ones() -> None:
    random_ = random.Random(0)
    for words in (1, 8, 200):
        own = keys_of([sentence(random_, words, words) + f" {index}" for index in range(2000)])
        shares = np.histogram(own.astype(np.float64), bins=10, range=(0, 2.0**64))[0] / len(own)
        assert shares.min() > 0.07
        assert shares.max() < 0.13


def test_keys_need_no_blanks_and_no_characters() -> None:
    texts = ["", "a", "今日は天気がいいですね。明日も晴れるでしょう。", "今日は天気がいいですね。明日は雨でしょう。"]
    assert len(set(keys_of(texts).tolist())) == 4
    assert keys([]).tolist() == []


def test_about_forty_bytes_are_held_for_a_row() -> None:
    assert observed(pairs(1000)).table().itemsize <= 40


def test_unknown_tokens_are_counted_by_row() -> None:
    examples = [Example(1, "plain"), Example(2, "☃ and ☃"), Example(3, "")]
    seen = Observation(unk_id=UNKNOWN)
    seen.add(examples, [encode(example) for example in examples])
    assert seen.table()["unknown"].tolist() == [0, 2, 0]


def test_the_first_token_is_never_predicted() -> None:
    seen = Observation()
    ids = np.arange(4, dtype=np.int32)
    seen.add([Example(1, "a b c d")], [Encoded(ids, np.ones(4, bool))])
    assert seen.table()["trained"].tolist() == [3]


def test_the_share_of_trained_tokens_is_unknown_where_the_target_stands_apart() -> None:
    seen = Observation()
    ids = np.arange(4, dtype=np.int32)
    seen.add([Example(1, "a b c d", completion="e f")], [Encoded(ids, target=ids[:3])])
    report = judge(seen, None, Context(task=Task.SEQ2SEQ, max_length=256))
    assert report.train.trained_share is None
    assert not report.problems()


def test_system_messages_are_no_side_but_tell_rows_apart() -> None:
    user, assistant = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}
    rows = [
        Example(line, "", messages=({"role": "system", "content": text}, user, assistant))
        for line, text in ((1, "be kind"), (2, "be brief"))
    ]
    assert [sides(row, False).whole for row in rows] == ["hello\nhi"] * 2
    assert len(set(observed(rows).table()["content"].tolist())) == 2


def test_parts_of_a_message_and_calls_of_tools_are_read() -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image"}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]}
    assert sides(Example(1, "", messages=({"role": "user", "content": parts}, call)), False)[:2] == (
        "look",
        "weather({})",
    )


def test_twins_have_about_the_same_share_in_a_small_sample_as_in_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.prepare.observed.observation.ROWS", 500)
    monkeypatch.setattr(sample, "ROWS", 500)
    examples = pairs(4000)
    twins = [replace(row, line=row.line + 4000, completion=f"{row.completion} indeed") for row in examples[:1000]]
    report = judge(observed(examples + twins, rows=5000), None, CONTEXT[pairs])
    found = next(finding for finding in report.findings if finding.code == "NearDuplicates")
    assert found.sampled == 500
    assert 0.14 < found.share < 0.26  # 0.2 of all; drawn one by one, a tenth of a tenth would be left


def test_evaluation_rows_are_compared_only_where_the_training_sample_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = pairs(4000)
    near = [replace(row, completion=f"{row.completion} indeed") for row in examples[::8]]
    own = observed(near, file="eval.jsonl")
    monkeypatch.setattr("finetune_trainer.prepare.observed.observation.ROWS", 400)
    monkeypatch.setattr(sample, "ROWS", 400)
    report = judge(observed(examples, rows=4000), own, CONTEXT[pairs])
    found = next(finding for finding in report.findings if finding.code == "EvalNearTrain")
    assert found.sampled < 80
    assert found.share > 0.7  # each of them is a twin
