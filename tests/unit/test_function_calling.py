"""Function calling and reasoning as people have them: recognised, named, and checked by the row's own tools."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import DataError
from tests.unit.test_data_columns import checked, first

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "hours": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
ARGUMENTS = {"city": "Oslo", "days": 2, "unit": "celsius", "hours": [1, 2.5]}


def call(name: str = "get_weather", number: str = "c1", **arguments: Any) -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def row(*calls: dict[str, Any], answers: str = "c1") -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": list(calls)},
        {"role": "tool", "tool_call_id": answers, "content": "10"},
        {"role": "assistant", "content": "10 degrees."},
    ]
    return {"messages": messages, "tools": [TOOL]}


XLAM = {
    "id": 1,
    "query": "Weather in Oslo?",
    "tools": json.dumps(
        [
            {
                "name": "get_weather",
                "description": "Weather",
                "parameters": {
                    "city": {"type": "str", "description": "a city"},
                    "days": {"type": "int, optional", "description": "how many"},
                    "near": {"type": "List[Tuple[float, float]]", "description": "points", "default": ""},
                },
            }
        ]
    ),
    "answers": json.dumps([{"name": "get_weather", "arguments": {"city": "Oslo"}}]),
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": ARGUMENTS})},
        {"from": "observation", "value": "10"},
        {"from": "gpt", "value": "10 degrees."},
    ],
    "tools": json.dumps([TOOL["function"]]),
}


@pytest.mark.parametrize(
    ("form", "given", "results"),
    [("OpenAI", row(call(**ARGUMENTS)), 1), ("ShareGPT", SHAREGPT, 1), ("xLAM", XLAM, 0)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_form_is_recognised_by_name_with_its_tools(
    form: str, given: dict[str, Any], results: int, tmp_path: Path
) -> None:
    data = checked(tmp_path, [given] * 3)
    (sentence,) = data.recognised
    assert sentence == f"function calling ({form}): 3 rows with 1 tool, 3 calls, {3 * results} results"
    example = first(data)
    (made,) = example.messages[1]["tool_calls"]
    assert made["function"]["name"] == "get_weather"
    assert made["function"]["arguments"]["city"] == "Oslo"
    assert example.tools[0].get("function", example.tools[0])["name"] == "get_weather"


def test_the_parameters_of_xlam_become_a_schema(tmp_path: Path) -> None:
    parameters = first(checked(tmp_path, [XLAM] * 2)).tools[0]["function"]["parameters"]
    assert parameters["required"] == ["city"]
    kinds = {name: one["type"] for name, one in parameters["properties"].items()}
    assert kinds == {"city": "string", "days": "integer", "near": "array"}


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        (row(call("get_wether", city="Oslo")), "UnknownTool", "messages[1].tool_calls[0] calls 'get_wether'"),
        (row(call(days=2)), "CallArguments", "arguments has no 'city', which the tool needs"),
        (row(call(city=3)), "CallArguments", "arguments.city is 3; the tool takes string"),
        (row(call(city="Oslo", days=1.5)), "CallArguments", "arguments.days is 1.5; the tool takes integer"),
        (row(call(city="Oslo", days=True)), "CallArguments", "arguments.days is True; the tool takes integer"),
        (row(call(city="Oslo", unit="kelvin")), "CallArguments", "arguments.unit is 'kelvin'"),
        (row(call(city="Oslo", hours=[1, "2"])), "CallArguments", "arguments.hours[1] is '2'; the tool takes number"),
        (row(call(city="Oslo", place=1)), "CallArguments", "arguments has 'place', which the tool does not take"),
        (row(call(city="Oslo"), answers="c9"), "UnknownCall", "messages[2].tool_call_id is 'c9'"),
        ({**XLAM, "answers": json.dumps([{"name": "f", "arguments": {}}])}, "UnknownTool", "calls 'f'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_that_its_tools_refuse_is_refused_with_its_line(
    wrong: dict[str, Any], code: str, said: str, tmp_path: Path
) -> None:
    good = XLAM if "query" in wrong else row(call(**ARGUMENTS))
    with pytest.raises(DataError) as refused:
        checked(tmp_path, [good, wrong, good])
    (problem,) = refused.value.problems
    assert (problem.code, problem.lines, problem.count) == (code, (2,), 1)
    assert said in problem.message


def test_calls_are_not_judged_where_nothing_describes_their_tool(tmp_path: Path) -> None:
    bare = row(call("anything", city=3))
    del bare["tools"]
    own = {**row(call("anything", city=3)), "tools": [{"type": "web_search"}]}
    assert checked(tmp_path, [bare, bare, own]).good == 3


@pytest.mark.parametrize("column", ["reasoning", "thought", "cot", "Complex_CoT"])
@pytest.mark.parametrize("template", [True, False])
def test_reasoning_beside_an_answer_is_learnt_before_it(column: str, template: bool, tmp_path: Path) -> None:
    rows = [{"question": "1 + 2?", column: "1 and 2 make 3.", "answer": "3"}] * 3
    data = checked(tmp_path, rows, template=template)
    assert data.recognised == [
        f"reasoning: 3 rows reason before the answer (in the column {column!r}, written as <think>)"
    ]
    example = first(data)
    learnt = example.messages[-1]["content"] if template else example.completion
    assert learnt == "<think>\n1 and 2 make 3.\n</think>\n\n3"
    assert not [notice for notice in data.notices if notice.code == "UnusedColumns"]


def test_reasoning_is_left_out_where_the_job_names_the_columns(tmp_path: Path) -> None:
    rows = [{"question": "1 + 2?", "cot": "1 and 2 make 3.", "answer": "3"}] * 3
    data = checked(tmp_path, rows, columns={"question": "question", "answer": "answer"})
    assert data.recognised == []
    assert first(data).messages[-1]["content"] == "3"


def test_other_names_of_a_pair_are_proposed_with_their_reasoning(tmp_path: Path) -> None:
    rows = [{"Question": "1 + 2?", "Complex_CoT": "1 and 2 make 3.", "Response": "3"}] * 3
    with pytest.raises(DataError, match="prompt: Question, completion: Response, reasoning: Complex_CoT"):
        checked(tmp_path, rows)
    columns = {"prompt": "Question", "completion": "Response", "reasoning": "Complex_CoT"}
    assert "1 and 2 make 3." in first(checked(tmp_path, rows, columns=columns)).messages[-1]["content"]


@pytest.mark.parametrize("where", ["reasoning_content", "thinking", "content"])
def test_reasoning_in_messages_is_recognised(where: str, tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "3", where: "<think>\n1 and 2.\n</think>\n\n3"}
    data = checked(tmp_path, [{"messages": [{"role": "user", "content": "1 + 2?"}, answer]}] * 2)
    assert data.recognised == ["reasoning: 2 rows reason before the answer (in the messages)"]
