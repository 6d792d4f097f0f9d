"""Rows of xLAM's function calling (`query`, `tools`, `answers`, the last two as JSON text) as conversations.

Its tools describe each parameter by a Python type (`str, optional`) where a chat template needs a JSON schema.
Source: the data set Salesforce/xlam-function-calling-60k, its card.
"""

from collections.abc import Mapping
from typing import Any

from finetune_trainer.prepare.data.calls import calls_as_text, tool_calls, tools_of
from finetune_trainer.prepare.data.conversation import Message
from finetune_trainer.prepare.data.formats import Code, json_type
from finetune_trainer.prepare.data.wrong import Wrong

PYTHON_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
}


def xlam_messages(query: str, column: str, answers: Any) -> tuple[Message, ...]:
    """Return the question and its calls.

    Args:
        column: of the answers.

    Raises:
        Wrong: the answers are not a list of calls with a name and arguments.
    """
    given = calls_as_text(column, answers) if isinstance(answers, str) else answers
    calls = tool_calls(column, given)
    if not calls:
        raise Wrong(Code.NO_ASSISTANT, f"{column!r} holds no call")
    named = [call if "function" in call else {"type": "function", "function": call} for call in calls]
    return ({"role": "user", "content": query}, {"role": "assistant", "tool_calls": named})


def xlam_tools(column: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the tools with JSON schemas; those that have one already stay as they are.

    Raises:
        Wrong: as of `tools_of`.
    """
    return tuple(_tool(tool) for tool in tools_of(column, value))


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = tool.get("parameters")
    if "function" in tool or not isinstance(parameters, Mapping):
        return tool if "function" in tool else {"type": "function", "function": tool}
    if parameters.get("type") == "object" and isinstance(parameters.get("properties"), Mapping):
        return {"type": "function", "function": tool}
    properties = {name: _schema(name, one) for name, one in parameters.items()}
    required = [name for name, one in parameters.items() if "default" not in one and "optional" not in one["type"]]
    schema = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {**tool, "parameters": schema}}


def _schema(name: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise Wrong(Code.WRONG_TYPE, f"parameter {name!r} of a tool is {json_type(given)}; it must have a type")
    python = given["type"].partition(",")[0].strip()
    known = PYTHON_TYPES.get(python.partition("[")[0].strip().lower())
    rest = {key: value for key, value in given.items() if key != "type"}
    # a type that JSON does not have, such as Callable, takes anything
    return {"type": known, **rest} if known else {**rest, "description": f"{given.get('description', '')} ({python})"}
