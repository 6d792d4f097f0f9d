"""The answers of a server beside those of transformers: shares, ends, the first difference."""

from typing import Any

import pytest

from finetune_trainer.serving.comparing import Compared, agreement_of, answer_of, server_result
from finetune_trainer.serving.serve_records import ExpectedAnswers, GreedyAnswer, ServeSettings

ENDS = (2, 9)
SETTINGS = ServeSettings(tokens=8, agreement=0.75)


def said(*tokens: int, ended: bool = True, passed: int | None = None) -> GreedyAnswer:
    return GreedyAnswer(tokens=tokens, ended=ended, passed=passed)


@pytest.mark.parametrize(
    ("tokens", "stopped", "answer"),
    [
        ([5, 6, 2], True, said(5, 6)),
        ([5, 6], True, said(5, 6)),
        ([5, 6, 7], False, said(5, 6, 7, ended=False)),
        ([5, 9, 7, 8], False, said(5, ended=False, passed=9)),
        ([5, 9, 7, 2], True, said(5, ended=False, passed=9)),
        ([5, 6, 2], False, said(5, 6, ended=False, passed=2)),
        ([], True, said()),
    ],
)
def test_an_answer_ends_at_its_end_token_only_if_the_server_stopped_there(
    tokens: list[int], stopped: bool, answer: GreedyAnswer
) -> None:
    assert answer_of(tokens, stopped, ENDS) == answer


@pytest.mark.parametrize(
    ("expected", "served", "pair"),
    [
        (said(1, 2, 3), said(1, 2, 3), Compared(4, 4)),
        (said(1, 2, 3), said(1, 2, 3, ended=False), Compared(3, 4)),
        (said(1, 2, 3), said(1, 7, 3), Compared(1, 4)),
        (said(1, 2, 3, ended=False), said(1, 2), Compared(2, 3)),
        (said(), said(), Compared(1, 1)),
        (said(1, ended=False), said(1, 2, ended=False), Compared(1, 1)),
    ],
)
def test_tokens_count_until_the_first_other_one_and_the_end_is_a_token(
    expected: GreedyAnswer, served: GreedyAnswer, pair: Compared
) -> None:
    assert agreement_of(expected, served) == pair


def asked(*answers: GreedyAnswer, turn: tuple[int, ...] = ()) -> ExpectedAnswers:
    return ExpectedAnswers(prompts=((1, 2),) * len(answers), answers=answers, ends=ENDS, dtype="float32", turn=turn)


RIGHT = (said(1, 3, 4), said(5, 6, 7, 8, ended=False))
RESULTS: list[tuple[tuple[GreedyAnswer, ...], dict[str, Any], str]] = [
    (RIGHT, {"served": True, "reason": "SameAnswers", "share": 1.0}, "1 of 2 answers end within 8 tokens"),
    (
        (said(1, 3, 4), said(5, 6, 0, 0, ended=False)),
        {"served": True, "reason": "SameAnswers", "share": 0.75},
        "75.0% of 8 tokens as transformers, and 75.0% are asked for",
    ),
    (
        (said(1, 3, 4), said(0)),
        {"served": False, "reason": "OtherAnswers", "share": 0.5},
        "answer 2 differs at token 1: token 5, the server has token 0",
    ),
    (
        (said(1, 3), said(5)),
        {"served": False, "reason": "OtherAnswers", "share": 0.375},
        "answer 1 differs at token 3: token 4, the server has the end",
    ),
    (
        (said(1, 3, 4, ended=False, passed=9), said(5, 6, 7, 8, ended=False)),
        {"served": False, "reason": "EndsMissed", "share": 0.875},
        "goes on after token 9, which ends an answer, in 1 of 2 answers",
    ),
]


@pytest.mark.parametrize(("served", "facts", "words"), RESULTS)
def test_the_result_names_the_reason_and_what_was_seen(
    served: tuple[GreedyAnswer, ...], facts: dict[str, Any], words: str
) -> None:
    result = server_result(asked(*RIGHT), served, SETTINGS, "vLLM 1")
    assert {name: getattr(result, name) for name in facts} == facts
    assert words in result.message
    assert result.settings == SETTINGS.digest


def test_another_chat_template_is_another_answer() -> None:
    result = server_result(asked(*RIGHT, turn=(1, 2)), RIGHT, SETTINGS, "vLLM 1", turn=(1, 2, 3))
    assert (result.served, result.reason) == (False, "OtherAnswers")
    assert "another chat template, as 3 tokens in place of 2" in result.message
    assert server_result(asked(*RIGHT, turn=(1, 2)), RIGHT, SETTINGS, "vLLM 1", turn=(1, 2)).served
    assert server_result(asked(*RIGHT, turn=(1, 2)), RIGHT, SETTINGS, "vLLM 1").served  # the server tells no template
