"""Rows to examples: which columns play which part, and what conversations, pairs and texts must be."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from finetune_api.errors import DataError, FineTuneError
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data.chunks import read_records
from finetune_trainer.prepare.data.dataset import check_dataset
from finetune_trainer.prepare.data.detect import open_file
from finetune_trainer.prepare.data.examples import Example, ExampleLayout, examples
from finetune_trainer.prepare.data.formats import DataFile, Fault
from finetune_trainer.prepare.data.shapes import columns_of
from finetune_trainer.prepare.data.sources import locate_all

Given = dict[str, str]


def write(folder: Path, *rows: Any) -> DataFile:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_file(path, "data.jsonl", "spec.dataset.train")


def read_as(
    folder: Path, *rows: Any, task: Task = Task.CAUSAL_LM, template: bool = True, columns: Given | None = None
) -> tuple[ExampleLayout, list[Example | Fault]]:
    file = write(folder, *rows)
    found = columns_of(file, task, columns or {}, template)
    return found.layout, list(examples(read_records(file), found))


def one(folder: Path, row: Any, **options: Any) -> Example:
    _, (example,) = read_as(folder, row, **options)
    assert isinstance(example, Example), example
    return example


def fault(folder: Path, row: Any, **options: Any) -> tuple[str, str]:
    good = {"messages": [said("user", "q"), said("assistant", "a")]}
    _, (_, found) = read_as(folder, options.pop("good", good), row, **options)
    assert isinstance(found, Fault), found
    return found.code, found.message


def said(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def turn(speaker: str, value: Any = "x") -> dict[str, Any]:
    return {"from": speaker, "value": value}


# ---------------------------------------------------------------- which columns

LAYOUTS: dict[str, tuple[dict[str, Any], ExampleLayout, tuple[str, str]]] = {
    "text": ({"text": "t", "id": 1}, ExampleLayout.TEXT, ("t", "")),
    "prompt and completion": ({"prompt": "p", "completion": "c"}, ExampleLayout.PAIR, ("p", "c")),
    "prompt and response": ({"prompt": "p", "response": "c"}, ExampleLayout.PAIR, ("p", "c")),
    "question and answer": ({"question": "p", "answer": "c", "text": "t"}, ExampleLayout.PAIR, ("p", "c")),
    "input and output": ({"input": "p", "output": "c"}, ExampleLayout.PAIR, ("p", "c")),
    "prompt and completion beside others": (
        {"prompt": "p", "completion": "c", "response": "r", "text": "t"},
        ExampleLayout.PAIR,
        ("p", "c"),
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_columns_are_known_by_their_names(tmp_path: Path, case: str) -> None:
    row, layout, texts = LAYOUTS[case]
    found, (example,) = read_as(tmp_path, row, template=False)
    assert isinstance(example, Example)
    assert (found, (example.text, example.completion)) == (layout, texts)


def test_columns_of_other_names_are_said_by_the_job(tmp_path: Path) -> None:
    columns = {"question": "q", "answer": "a"}
    example = one(tmp_path, {"q": "p", "a": "c", "text": "t"}, columns=columns, template=False)
    assert (example.text, example.completion) == ("p", "c")
    messages = [said("user"), said("assistant")]
    assert one(tmp_path, {"chat": messages, "text": "t"}, columns={"messages": "chat"}).messages == tuple(messages)


def test_an_encoder_decoder_takes_pairs(tmp_path: Path) -> None:
    example = one(tmp_path, {"input": "p", "output": "c"}, task=Task.SEQ2SEQ)
    assert (example.text, example.completion) == ("p", "c")


def test_names_that_can_be_read_in_two_ways_are_asked_about(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "input": "i", "output": "o"}
    with pytest.raises(DataError, match=r"can be read as 'question' and 'answer' or 'input' and 'output' .* columns:"):
        read_as(tmp_path, row)


HINTS: dict[str, tuple[dict[str, Any], Task, str]] = {
    "likely names": ({"body": "b", "category": "c"}, Task.CLASSIFICATION, r"columns: \{text: body, label: category\}"),
    "names with capitals": ({"Text": "b", "Label": "c"}, Task.CLASSIFICATION, r"\{text: Text, label: Label\}"),
    "likely pairs": ({"query": "q", "reply": "r"}, Task.CAUSAL_LM, r"columns: \{prompt: query, completion: reply\}"),
    "likely text": ({"content": "c", "url": "u"}, Task.CAUSAL_LM, r"columns: \{text: content\}"),
    "preferences": ({"prompt": "p", "chosen": "c", "rejected": "r"}, Task.CAUSAL_LM, "set spec.task to preference"),
    "rows in an envelope": ({"version": 1, "data": [{"text": "t"}]}, Task.CAUSAL_LM, "the rows seem to lie in 'data'"),
    "conversations for a classifier": ({"messages": []}, Task.CLASSIFICATION, "set spec.task to causal-lm"),
    "nothing likely": ({"a": "b"}, Task.CLASSIFICATION, r"such as|columns which column is which"),
}


@pytest.mark.parametrize("case", HINTS)
def test_a_file_without_the_columns_gets_a_proposal(tmp_path: Path, case: str) -> None:
    row, task, cure = HINTS[case]
    with pytest.raises(DataError, match=cure) as caught:
        read_as(tmp_path, row, task=task)
    assert caught.value.problems[0].code == "MissingColumn"
    assert all(repr(name) in caught.value.problems[0].message for name in row)


def test_a_csv_without_header_is_suspected(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("I would like my money back please and soon,complaint\nthanks,praise\n")
    with pytest.raises(DataError, match="line 1 seems to be a row, not a header"):
        columns_of(open_file(path, "x.csv", "f"), Task.CLASSIFICATION, {})


# ---------------------------------------------------------------- conversations

CHATS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "messages": (
        {"messages": [said("system", "s"), said("user", "q"), said("assistant", "a")]},
        [said("system", "s"), said("user", "q"), said("assistant", "a")],
    ),
    "ShareGPT": (
        {"conversations": [turn("system", "s"), turn("human", "q"), turn("gpt", "a"), turn("function", "f")]},
        [said("system", "s"), said("user", "q"), said("assistant", "a"), said("tool", "f")],
    ),
    "ShareGPT in a column called messages": (
        {"messages": [turn("human", "q"), turn("gpt", "a")]},
        [said("user", "q"), said("assistant", "a")],
    ),
    "calls of ShareGPT: hiyouga/LLaMA-Factory, NVIDIA-NeMo/Automodel#2375": (
        {
            "conversations": [
                turn("human", "q"),
                turn("function_call", '{"name": "f", "arguments": {"a": 1}}'),
                turn("observation", "3"),
                turn("gpt", "a"),
            ]
        },
        [
            said("user", "q"),
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
            },
            said("tool", "3"),
            said("assistant", "a"),
        ],
    ),
    "roles in a column called conversations": (
        {"conversations": [said("user", "q"), said("assistant", "a")]},
        [said("user", "q"), said("assistant", "a")],
    ),
    "content in parts": (
        {"messages": [said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), said("assistant")]},
        [said("user", "ab"), said("assistant")],
    ),
    "weights": (
        {"messages": [said("user"), said("assistant", weight=0), said("user"), said("assistant", weight=1.0)]},
        [said("user"), said("assistant", weight=0), said("user"), said("assistant", weight=1)],
    ),
    "a call of a tool, with the nulls of a columnar file": (
        {
            "messages": [
                said("user", "q", tool_calls=None),
                said("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": {}}}]),
                said("tool", "", name="f"),
                said("assistant", "a", name=None),
            ]
        },
        [
            said("user", "q"),
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            said("tool", "", name="f"),
            said("assistant", "a"),
        ],
    ),
    "prompt and completion of messages": (
        {"prompt": [said("user", "q"), said("assistant", "b"), said("user", "r")], "completion": [said("assistant")]},
        [said("user", "q"), said("assistant", "b", weight=0), said("user", "r"), said("assistant")],
    ),
    "Alpaca": (
        {"instruction": "i", "input": "", "output": "o", "text": "t"},
        [said("user", "i"), said("assistant", "o")],
    ),
    "Alpaca with an input": (
        {"instruction": "i", "input": "n", "output": "o"},
        [said("user", "i\n\nn"), said("assistant", "o")],
    ),
    "Alpaca with a system message and earlier turns": (
        {"instruction": "i", "output": "o", "system": "s", "history": [["q", "a"]]},
        [said("system", "s"), said("user", "q"), said("assistant", "a"), said("user", "i"), said("assistant", "o")],
    ),
}


@pytest.mark.parametrize("case", CHATS)
def test_conversations_take_one_form(tmp_path: Path, case: str) -> None:
    row, expected = CHATS[case]
    layout, (example,) = read_as(tmp_path, row)
    assert isinstance(example, Example), example
    assert layout is ExampleLayout.CHAT
    assert list(example.messages) == expected


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f"}]', None, ""])
def test_tools_stand_beside_the_conversation(tmp_path: Path, tools: Any) -> None:
    row = {"messages": [said("user"), said("assistant")], "tools": tools}
    assert list(one(tmp_path, row).tools) == ([{"name": "f"}] if tools else [])


def test_without_a_chat_template_alpaca_is_a_prompt_and_its_answer(tmp_path: Path) -> None:
    layout, (with_input, without) = read_as(
        tmp_path,
        {"instruction": "i", "input": "n", "output": "o"},
        {"instruction": "i", "input": None, "output": "o"},
        template=False,
    )
    assert layout is ExampleLayout.PAIR
    assert isinstance(with_input, Example)
    assert isinstance(without, Example)
    assert with_input.text.endswith("### Instruction:\ni\n\n### Input:\nn\n\n### Response:")
    assert without.text.endswith("### Instruction:\ni\n\n### Response:")
    assert "### Input" not in without.text
    assert with_input.completion == "\no"


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    """A message that calls a tool."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call], **more}


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'], ids=["object", "text"])
@pytest.mark.parametrize("more", [{}, {"content": None}, {"content": ""}], ids=["missing", "null", "empty"])
def test_a_call_is_the_same_in_each_form_that_people_write(
    tmp_path: Path, arguments: Any, more: dict[str, Any]
) -> None:
    """ml-explore/mlx-examples#1053, oumi-ai/oumi#2599 (text); huggingface/transformers#45290 (content)."""
    messages = [said("user"), called(arguments, **more), said("assistant", refusal=None, audio=None, tool_calls=[])]
    _, (row,) = read_as(tmp_path, {"messages": messages})
    assert isinstance(row, Example)
    assert row.messages[1:] == (called({"city": "Oslo"}), said("assistant"))


def test_a_null_that_was_written_stays_and_no_arguments_are_an_empty_object(tmp_path: Path) -> None:
    _, (row,) = read_as(tmp_path, {"messages": [said("user"), called('{"unit": null}'), called(""), said("assistant")]})
    assert isinstance(row, Example)
    assert row.messages[1:3] == (called({"unit": None}), called({}))


def test_what_a_columnar_file_fills_in_is_left_out(tmp_path: Path) -> None:
    """Two tools in one Parquet file: every call has the arguments of both, and every schema the other's."""
    schemas = [{"properties": {name: {"type": "string"}}} for name in "ab"]
    tools = [{"function": {"name": "weather", "parameters": schema}} for schema in schemas]
    rows = [
        {"messages": [said("user"), called({name: "x"}), said("assistant")], "tools": [tool]}
        for name, tool in zip("ab", tools, strict=True)
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    spec = DatasetSpec(train=f"file://{tmp_path}/train.parquet")
    data = check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), tmp_path / "work", seed=1, has_template=True)
    found = list(data.train_examples())
    assert [row.messages[1] for row in found] == [called({"a": "x"}), called({"b": "x"})]
    assert [list(row.tools) for row in found] == [[tool] for tool in tools]


def test_a_schema_that_is_text_becomes_an_object(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": '{"type": "object"}'}}
    _, rows = read_as(
        tmp_path,
        {"messages": [said("user"), said("assistant")], "tools": [tool]},
        {"messages": [said("user"), said("assistant")], "tools": json.dumps([tool])},
    )
    for row in rows:
        assert isinstance(row, Example)
        assert row.tools[0]["function"]["parameters"] == {"type": "object"}


@pytest.mark.parametrize("names", [("prompt", "completion"), ("question", "answer")])
def test_pairs_are_conversations_where_there_is_a_template(tmp_path: Path, names: tuple[str, str]) -> None:
    asked = dict(zip(names, ("How many?", " Three."), strict=True))
    layout, (plain, led) = read_as(tmp_path, asked, asked | {"system": "Be brief."})
    assert layout is ExampleLayout.CHAT
    assert isinstance(plain, Example)
    assert isinstance(led, Example)
    assert plain.messages == (said("user", "How many?"), said("assistant", "Three."))
    assert led.messages == (said("system", "Be brief."), *plain.messages)


def test_pairs_without_a_template_are_texts_and_a_system_column_is_not_dropped(tmp_path: Path) -> None:
    row = {"prompt": "How many?", "completion": " Three."}
    layout, (plain,) = read_as(tmp_path, row, template=False)
    assert layout is ExampleLayout.PAIR
    assert plain == Example(1, "How many?", completion=" Three.")
    _, (led,) = read_as(tmp_path, row | {"system": "Be brief."}, template=False)
    assert isinstance(led, Fault)
    assert led.message.startswith("'system' is given, and the model has no chat template to write it")


BROKEN: dict[str, tuple[Any, str, str]] = {
    "no list": ("hello", "WrongType", "'messages' is a string; it must be a list of messages"),
    "no JSON in a string": (
        '[{"role": "user"}',
        "InvalidJSON",
        "'messages' is a list as text with an error: not valid",
    ),
    "a list as Python prints it": ("[{'role': 'user'}]", "PythonLiteral", "a list as Python prints it, not JSON"),
    "NaN within": ([said("user"), said("assistant", weight=float("nan"))], "NotANumber", "is, or holds, NaN"),
    "a call in OpenAI's first form": (
        [said("user"), said("assistant", None, function_call={"name": "f", "arguments": "{}"})],
        "FunctionCalls",
        "messages[1] has a 'function_call', which is what OpenAI's rows had before tool calls",
    ),
    "a call in OpenAI's first form beside a text": (
        [said("user"), said("assistant", "hm", function_call={"name": "f", "arguments": "{}"})],
        "FunctionCalls",
        "before tool calls",
    ),
    "null": (None, "NullValue", "'messages' is null"),
    "no messages": ([], "NoMessages", "an empty list"),
    "a string for a message": (["hi"], "InvalidMessage", "messages[0] is a string; a message is an object"),
    "no role": ([{"content": "x"}], "InvalidMessage", "messages[0] has no 'role' (and no 'from'), but 'content'"),
    "no content": ([{"role": "user"}], "InvalidMessage", "messages[0] has no 'content'"),
    "null content": ([said("user"), said("assistant", None)], "InvalidMessage", "messages[1] has no 'content'"),
    "a role by another name": ([said("human")], "UnknownRole", "did you mean 'user'?"),
    "a role in capitals": ([said("Assistant")], "UnknownRole", "did you mean 'assistant'?"),
    "an unknown role": ([said("narrator")], "UnknownRole", "is 'narrator'; roles are system, developer, user"),
    "an unknown speaker": ([turn("narrator")], "UnknownRole", "messages[0].from is 'narrator'"),
    "a number for a role": ([said(1)], "InvalidMessage", "messages[0].role is a number"),  # type: ignore[arg-type]
    "an object for content": ([said("user", {"a": 1})], "WrongType", "messages[0].content is an object"),
    "an image": ([said("user", [{"type": "image_url", "image_url": "x"}])], "NotText", "is of type 'image_url'"),
    "a part that is none": ([said("user", ["x"])], "WrongType", "messages[0].content[0] is not a text part"),
    "an empty question": ([said("user", " "), said("assistant")], "EmptyMessage", "its role is user"),
    "an empty answer": ([said("user"), said("assistant", "")], "EmptyMessage", "its role is assistant"),
    "no answer": ([said("system"), said("user")], "NoAssistant", "no assistant message"),
    "a call of OpenAI's first form": (
        [said("user"), said("assistant", None, function_call={"name": "f", "arguments": "{}"})],
        "FunctionCalls",
        "messages[1] has a 'function_call', which is what OpenAI's rows had before tool calls",
    ),
    "a refusal": ([said("user"), said("assistant", None, refusal="No.")], "InvalidMessage", "write it as content"),
    "arguments that are no JSON": (
        [said("user"), called('{"city": ')],
        "InvalidMessage",
        "messages[1].tool_calls[0].function.arguments is a string that is not JSON (",
    ),
    "arguments that are a list": (
        [said("user"), called("[1]")],
        "InvalidMessage",
        "messages[1].tool_calls[0].function.arguments is a list; it must be an object",
    ),
    "a call of nothing": (
        [said("user"), said("assistant", tool_calls=[{"type": "function"}])],
        "InvalidMessage",
        "messages[1].tool_calls[0] has no 'name'",
    ),
    "a tool that nobody called": ([said("user"), said("tool"), said("assistant")], "WrongRoleOrder", "after user"),
    "a tool to begin with": ([said("tool"), said("assistant")], "WrongRoleOrder", "messages[0] is of role tool, first"),
    "a weight of two": ([said("user"), said("assistant", weight=2)], "InvalidWeight", "is 2; a message has weight 0"),
    "a weight in words": ([said("user"), said("assistant", weight="1")], "InvalidWeight", "is a string"),
    "nothing weighs": ([said("user"), said("assistant", weight=0)], "NothingToLearn", "every assistant message"),
    "calls that are no list": (
        [said("user"), said("assistant", tool_calls="f")],
        "InvalidMessage",
        "tool_calls is a string that is not JSON",
    ),
    "half a character": ([said("user", "\ud83d"), said("assistant")], "BadUnicode", "messages[0].content holds half"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_conversation_that_breaks_a_rule_says_which_message(tmp_path: Path, case: str) -> None:
    value, code, message = BROKEN[case]
    seen = fault(tmp_path, {"messages": value})
    assert seen[0] == code
    assert message in seen[1]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"instruction": "i", "output": ""}, "EmptyText"),
        ({"instruction": "i", "input": 5, "output": "o"}, "WrongType"),
        ({"instruction": "i", "output": "o", "history": ["x"]}, "InvalidMessage"),
        ({"instruction": "i"}, "MissingField"),
        ({"messages": []}, "MixedColumns"),
    ],
)
def test_alpaca_rows_are_checked(tmp_path: Path, row: dict[str, Any], code: str) -> None:
    assert fault(tmp_path, row, good={"instruction": "i", "output": "o"})[0] == code


@pytest.mark.parametrize("part", ["system", "history"])
def test_without_a_template_there_is_no_place_for_a_system_message_or_history(tmp_path: Path, part: str) -> None:
    row = {"instruction": "i", "output": "o", part: "s" if part == "system" else [["q", "a"]]}
    code, message = fault(tmp_path, row, good={"instruction": "i", "output": "o"}, template=False)
    assert (code, message.split()[0]) == ("InvalidMessage", repr(part))


def test_two_turns_of_one_role_are_left_to_the_template(tmp_path: Path) -> None:
    messages = [said("user"), said("user"), said("assistant"), said("assistant")]
    assert len(one(tmp_path, {"messages": messages}).messages) == 4


def test_an_unknown_part_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError, match=r"no part 'txt'; its parts are .*completion.*messages.*text"):
        read_as(tmp_path, {"text": "x"}, columns={"txt": "text"})
