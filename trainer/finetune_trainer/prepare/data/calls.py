"""Tool calls and descriptions of tools as a chat template takes them: objects, without what a columnar file fills in.

OpenAI writes the arguments of a call as JSON text, and files of columns hold no schemas of different shapes, so that
people store those as JSON text, too. A template writes what it is given: text would be quoted a second time.
"""

import json
from collections.abc import Mapping
from typing import Any

from finetune_trainer.prepare.data.formats import Code, json_type
from finetune_trainer.prepare.data.wrong import Wrong


def tool_calls(where: str, value: Any) -> list[dict[str, Any]]:
    """Return the calls of one message, their arguments as objects; an empty list if there are none.

    Args:
        where: path of the list within its row, for messages.

    Raises:
        Wrong: a call or its arguments are not an object.
    """
    if isinstance(value, str):
        value = _parsed(where, value, "a list") if value.strip() else []
    if not isinstance(value, list):
        raise Wrong(Code.INVALID_MESSAGE, f"{where} is {json_type(value)}; it must be a list")
    return [_call(f"{where}[{index}]", call) for index, call in enumerate(value)]


def calls_as_text(where: str, text: str) -> list[Any]:
    """Return the calls that a text holds as JSON: one, or a list of them; `tool_calls` checks them.

    Raises:
        Wrong: it is not JSON.
    """
    value = _parsed(where, text, "a call such as {name, arguments}")
    calls = value if isinstance(value, list) else [value]
    return [{"type": "function", "function": call} if isinstance(call, dict) else call for call in calls]


def _call(where: str, call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise Wrong(Code.INVALID_MESSAGE, f"{where} is {json_type(call)}; a tool call is an object")
    function, path = call, where
    if "function" in call:
        function, path = call["function"], f"{where}.function"
        if not isinstance(function, dict):
            raise Wrong(Code.INVALID_MESSAGE, f"{path} is {json_type(function)}; it must be an object")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise Wrong(Code.INVALID_MESSAGE, f"{path} has no 'name' of the function that is called")
    given = function.get("arguments")
    made = {**function, "arguments": _object(f"{path}.arguments", {} if given is None else given)}
    return {**call, "function": made} if function is not call else made


def _object(where: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = _parsed(where, value, "an object") if value.strip() else {}
    if not isinstance(value, dict):
        raise Wrong(Code.INVALID_MESSAGE, f"{where} is {json_type(value)}; it must be an object")
    return value


def _parsed(where: str, text: str, wanted: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        message = f"{where} is a string that is not JSON ({error}); it must be {wanted}, or {wanted} as JSON text"
        raise Wrong(Code.INVALID_MESSAGE, message) from None


def tools_of(column: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the descriptions of a conversation's tools, their schemas as objects.

    Raises:
        Wrong: it is not a list of objects.
    """
    if isinstance(value, str):  # as columns that hold no lists have it
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise Wrong(Code.WRONG_TYPE, f"{column!r} is a string that is not a JSON list of tools") from None
    if value is None:
        return ()
    if isinstance(value, list):
        value = [_tool(f"{column}[{index}]", tool) for index, tool in enumerate(value)]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Wrong(Code.WRONG_TYPE, f"{column!r} is {json_type(value)}; it must be a list of tools as objects")
    return tuple(value)


def _tool(where: str, tool: Any) -> Any:
    if isinstance(tool, str) and tool.lstrip().startswith("{"):
        tool = _parsed(where, tool, "an object")
    if not isinstance(tool, dict):
        return tool
    inner = tool.get("function")
    if isinstance(inner, dict):
        return {**tool, "function": _with_schema(f"{where}.function", inner)}
    return _with_schema(where, tool)


def _with_schema(where: str, function: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(function.get("parameters"), str):
        return function
    return {**function, "parameters": _object(f"{where}.parameters", function["parameters"])}


def without_fillers(value: Any) -> Any:
    """Return a value of a columnar file without the nulls in its objects.

    All rows of such a file have the same fields, at every depth: what a row does not have is null. (Items of lists that
    are null were written so.)
    """
    if isinstance(value, dict):
        return {name: without_fillers(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_fillers(item) for item in value]
    return value
