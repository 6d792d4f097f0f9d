"""Rows of preferences in the forms that people have them: which are read as what, and which are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.errors import DataError
from finetune_api.messages import Task
from finetune_trainer.prepare.data.checked_files import CheckedFile
from finetune_trainer.prepare.data.chunks import read_records
from finetune_trainer.prepare.data.contents import content_hash
from finetune_trainer.prepare.data.detect import open_file
from finetune_trainer.prepare.data.examples import Example, examples
from finetune_trainer.prepare.data.formats import Fault
from finetune_trainer.prepare.data.opening import mixed_layouts
from finetune_trainer.prepare.data.preferences import Completions
from finetune_trainer.prepare.data.shapes import columns_of
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.tokens.preferred import preferred
from finetune_trainer.prepare.tokens.token_rows import TokenRows

Message = dict[str, Any]


def said(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


Q, YES, NO = said("user", "q"), said("assistant", "yes"), said("assistant", "no")
EARLIER = [said("user", "p"), said("assistant", "o")]
HH = "\n\nHuman: p\n\nAssistant: o\n\nHuman: q\n\nAssistant:"


def read(folder: Path, *rows: Any, template: bool = True, columns: dict[str, str] | None = None) -> list[Any]:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = open_file(path, "data.jsonl", "spec.dataset.train")
    return list(examples(read_records(file), columns_of(file, Task.PREFERENCE, columns or {}, template)))


def one(folder: Path, row: Any, **options: Any) -> Example:
    (found,) = read(folder, row, **options)
    assert isinstance(found, Example), found
    return found


def fault(folder: Path, row: Any, **options: Any) -> tuple[str, str]:
    good = options.pop("good", {"prompt": [Q], "chosen": [YES], "rejected": [NO]})
    _, found = read(folder, good, row, **options)
    assert isinstance(found, Fault), found
    return found.code, found.message


PAIRS: dict[str, tuple[dict[str, Any], list[Message]]] = {
    "texts": ({"prompt": "q", "chosen": " yes", "rejected": "no"}, [Q]),
    "a question, with scores beside": (
        {"question": "q", "chosen": "yes", "rejected": "no", "score_chosen": 9.0, "score_rejected": 2.0},
        [Q],
    ),
    "a system message in a column": (
        {"system": "s", "question": "q", "chosen": "yes", "rejected": "no"},
        [said("system", "s"), Q],
    ),
    "Alpaca": ({"instruction": "q", "input": "r", "chosen": "yes", "rejected": "no"}, [said("user", "q\n\nr")]),
    "messages": ({"prompt": [*EARLIER, Q], "chosen": [YES], "rejected": [NO]}, [*EARLIER, Q]),
    "a prompt of messages and answers of text": ({"prompt": [Q], "chosen": "yes", "rejected": "no"}, [Q]),
    "a prompt of text and answers as messages": ({"prompt": "q", "chosen": [YES], "rejected": [NO]}, [Q]),
    "UltraFeedback: a prompt of text beside whole conversations": (
        {"prompt": "q", "chosen": [Q, YES], "rejected": [Q, NO], "messages": [Q, YES], "score_chosen": 8.5},
        [Q],
    ),
    "a prompt of messages beside whole conversations": (
        {"prompt": [*EARLIER, Q], "chosen": [*EARLIER, Q, YES], "rejected": [*EARLIER, Q, NO]},
        [*EARLIER, Q],
    ),
    "a system message that only the prompt has": (
        {"prompt": [said("system", "s"), Q], "chosen": [Q, YES], "rejected": [Q, NO]},
        [said("system", "s"), Q],
    ),
    "a system message before another question": (
        {"prompt": [said("system", "s"), said("user", "q ")], "chosen": [Q, YES], "rejected": [Q, NO]},
        [said("system", "s"), Q],
    ),
    "earlier turns that only the prompt has": (
        {"prompt": EARLIER, "chosen": [Q, YES], "rejected": [Q, NO]},
        [*EARLIER, Q],
    ),
    "one message as the prompt": ({"prompt": Q, "chosen": "yes", "rejected": "no"}, [Q]),
    "whole conversations": ({"chosen": [*EARLIER, Q, YES], "rejected": [*EARLIER, Q, NO]}, [*EARLIER, Q]),
    "conversations of ShareGPT, answers as one message": (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        [Q],
    ),
    "messages, answers as one message": ({"messages": [*EARLIER, Q], "chosen": YES, "rejected": NO}, [*EARLIER, Q]),
    "lists written as JSON text": (
        {"prompt": "q", "chosen": json.dumps([Q, YES]), "rejected": json.dumps([Q, NO])},
        [Q],
    ),
    "HH-RLHF: dialogues as text": ({"chosen": f"{HH} yes", "rejected": f"{HH} no"}, [*EARLIER, Q]),
    "a dialogue as the prompt, which the answers repeat": (
        {"prompt": HH, "chosen": f"{HH} yes", "rejected": f"{HH} no"},
        [*EARLIER, Q],
    ),
    "a dialogue as the prompt": ({"prompt": HH, "chosen": " yes", "rejected": " no"}, [*EARLIER, Q]),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_pair_is_a_prompt_and_two_answers(tmp_path: Path, case: str) -> None:
    """Only the two answers carry loss: those of the prompt have weight 0."""
    row, prompt = PAIRS[case]
    example = one(tmp_path, row)
    silent = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in prompt]
    assert example.rejected is not None
    assert list(example.messages) == [*silent, YES]
    assert list(example.rejected.messages) == [*silent, NO]
    assert len(example.completions) == 2


BARE: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "texts": ({"prompt": "q:", "chosen": " yes", "rejected": " no"}, ("q:", " yes", " no")),
    "dialogues as text": ({"chosen": f"{HH} yes", "rejected": f"{HH} no"}, (HH, " yes", " no")),
    "texts that begin alike": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        ("The sky is", " blue.", " black."),
    ),
    "a text that ends a word where the other goes on": (
        {"chosen": "See the cat sit.", "rejected": "See the cats."},
        ("See the", " cat sit.", " cats."),
    ),
}


@pytest.mark.parametrize("case", BARE)
def test_without_a_template_a_pair_is_three_texts(tmp_path: Path, case: str) -> None:
    row, expected = BARE[case]
    example = one(tmp_path, row, template=False)
    assert example.rejected is not None
    assert (example.text, example.completion, example.rejected.completion) == expected
    assert example.rejected.text == example.text


JUDGED: dict[str, tuple[dict[str, Any], bool]] = {
    "texts": ({"prompt": "q", "completion": "yes", "label": True}, True),
    "a word": ({"prompt": "q", "completion": "yes", "label": "False"}, False),
    "a number": ({"prompt": "q", "completion": "yes", "label": 1}, True),
    "a thumb": ({"prompt": [Q], "completion": [YES], "label": "\N{THUMBS DOWN SIGN}"}, False),
    "a conversation": ({"messages": [Q, YES], "label": "thumbs_up"}, True),
    "one message as the prompt": ({"prompt": Q, "completion": "yes", "label": "1"}, True),
    "a dialogue that the answer repeats": (
        {"prompt": "Human: q\n\nAssistant:", "completion": "Human: q\n\nAssistant: yes", "label": "true"},
        True,
    ),
}


@pytest.mark.parametrize("case", JUDGED)
def test_a_single_answer_is_desirable_or_not(tmp_path: Path, case: str) -> None:
    row, desirable = JUDGED[case]
    example = one(tmp_path, row)
    assert (list(example.messages), example.desirable, example.rejected) == ([Q, YES], desirable, None)


def test_columns_of_other_names_are_said_by_the_job(tmp_path: Path) -> None:
    row = {"conversations": [Q, YES], "kto_tag": False}
    columns = {"messages": "conversations", "label": "kto_tag"}
    assert one(tmp_path, row, columns=columns).desirable is False
    with pytest.raises(DataError, match=r"perhaps spec.dataset.columns: \{messages: conversations, label: kto_tag\}"):
        one(tmp_path, row)
    with pytest.raises(DataError, match=r"\{prompt: query, chosen: better, rejected: worse\}"):
        one(tmp_path, {"query": "q", "better": "yes", "worse": "no"})


def test_tools_of_a_row_go_with_both_answers(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    example = one(tmp_path, {"prompt": [Q], "chosen": [YES], "rejected": [NO], "tools": [tool]})
    assert example.rejected is not None
    assert example.tools == example.rejected.tools == (tool,)


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "answers of two prompts": ({"chosen": [Q, YES], "rejected": [EARLIER[0], NO]}, "NoCommonPrompt", "first messages"),
    "conversations that part at a question": (
        {"chosen": [*EARLIER, Q, YES], "rejected": [*EARLIER, EARLIER[0], NO]},
        "NoCommonPrompt",
        "message 2 already, which is a question",
    ),
    "texts that begin differently": ({"chosen": "yes", "rejected": "no"}, "NoCommonPrompt", "different words"),
    "a text and a list": ({"chosen": "yes", "rejected": [Q, NO]}, "WrongType", "two types"),
    "an empty answer": ({"chosen": "The same.", "rejected": ""}, "EmptyText", "'rejected' is empty"),
    "no answer at the end": ({"chosen": [Q, YES, Q], "rejected": [Q, NO, Q]}, "WrongRoleOrder", "ends with a message"),
    "a null": ({"chosen": None, "rejected": [Q, NO]}, "NullValue", "'chosen' is null"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_wrong_pair_is_refused(tmp_path: Path, case: str) -> None:
    row, code, message = FAULTS[case]
    found = fault(tmp_path, row, good={"chosen": [Q, YES], "rejected": [Q, NO]})
    assert found[0] == code
    assert message in found[1]


def test_a_dialogue_that_an_answer_repeats_and_does_not_answer_is_refused(tmp_path: Path) -> None:
    good = {"prompt": HH, "chosen": " yes", "rejected": " no"}
    expected = ("EmptyText", "'chosen' is the prompt, and no answer follows")
    assert fault(tmp_path, {**good, "chosen": HH}, good=good) == expected
    assert fault(tmp_path, {**good, "chosen": HH}, good=good, template=False) == expected


def test_a_label_that_is_neither_good_nor_bad_is_refused(tmp_path: Path) -> None:
    good = {"prompt": "q", "completion": "yes", "label": True}
    code, message = fault(tmp_path, {**good, "label": 4}, good=good)
    assert (code, message) == ("LabelType", "'label' is 4; it must be true (desirable) or false (undesirable)")


def test_all_answers_of_a_prompt_have_one_content(tmp_path: Path) -> None:
    """Rows are held out by content: a prompt of the evaluation is then never trained."""
    first = {"prompt": [*EARLIER, Q], "chosen": [YES], "rejected": [NO]}
    rows = read(tmp_path, first, {**first, "chosen": [NO], "rejected": [YES]}, {**first, "prompt": [Q]})
    hashes = [content_hash(row) for row in rows]
    assert hashes[0] == hashes[1] != hashes[2]
    longer = [{"chosen": [Q, YES, one, YES], "rejected": [Q, NO, one, NO]} for one in (said("user", "r"), EARLIER[0])]
    several = {content_hash(row) for row in read(tmp_path, *longer)}
    assert several == {hashes[2]}, "a later question is a part of the completion"


@pytest.mark.parametrize(("completions", "cut"), [(Completions.UNPAIRED, [False, True]), (Completions.PAIRED, [True])])
def test_of_a_pair_of_which_one_answer_is_cut_one_is_counted(completions: Completions, cut: list[bool]) -> None:
    whole, half = (Encoded(np.arange(3, dtype=np.int32), np.ones(3, np.bool_), None, full) for full in (3, 5))
    pair = preferred(Example(1, "q", rejected=Example(1, "q")), [whole, half], completions)
    assert isinstance(pair, Encoded)
    assert TokenRows.of([pair]).cut.tolist() == cut


def test_pairs_and_single_answers_are_two_data_sets(tmp_path: Path) -> None:
    files = []
    for name, row in (("a", {"prompt": "q", "chosen": "y", "rejected": "n"}), ("b", PAIRED_WITH)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        file = open_file(path, path.name, "spec.dataset.train")
        files.append(CheckedFile(0, file, columns_of(file, Task.PREFERENCE, {}, True)))
    problem = mixed_layouts(files)
    assert problem is not None
    assert (problem.code, "completion, label" in problem.message) == ("MixedLayouts", True)


PAIRED_WITH = {"prompt": "q", "completion": "y", "label": True}
