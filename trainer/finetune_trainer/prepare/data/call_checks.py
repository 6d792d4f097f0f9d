"""Whether the tool calls of a conversation fit its tools, and the results of tools fit the calls.

A model that learns a call of a tool that is not there, or with arguments that the tool refuses, makes such calls.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_trainer.prepare.data.formats import Code
from finetune_trainer.prepare.data.json_schema import misfit
from finetune_trainer.prepare.data.wrong import Wrong

SHOWN = 8  # names of tools


def check_tool_use(column: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> None:
    """Check calls against the descriptions of tools, if the row has any, and results against calls.

    Args:
        column: of the messages.

    Raises:
        Wrong: a call names another tool or has arguments that its schema refuses, or a result answers no call.
    """
    schemas = {name: function.get("parameters") for name, function in described(tools)}
    asked: set[str] = set()
    for at, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function", call)
            where = f"{column}[{at}].tool_calls[{number}]"
            if schemas and len(schemas) == len(tools):  # tools of another form, such as a provider's own, have no name
                _check_call(where, function, schemas)
            if isinstance(call.get("id"), str):
                asked.add(call["id"])
        answered = message.get("tool_call_id")
        if message["role"] == "tool" and asked and isinstance(answered, str) and answered not in asked:
            known = ", ".join(sorted(map(repr, asked))[:SHOWN])
            message_text = f"{column}[{at}].tool_call_id is {answered[:40]!r}; the calls before it are {known}"
            raise Wrong(Code.UNKNOWN_CALL, message_text)


def described(tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the description of each tool that has a name."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            yield function["name"], function


def _check_call(where: str, function: Mapping[str, Any], schemas: Mapping[str, Any]) -> None:
    name = function["name"]
    if name not in schemas:
        known = ", ".join(map(repr, list(schemas)[:SHOWN])) + (", ..." if len(schemas) > SHOWN else "")
        raise Wrong(Code.UNKNOWN_TOOL, f"{where} calls {name[:60]!r}; the tools of the row are {known}")
    if why := misfit(function.get("arguments") or {}, schemas[name], f"{where}.arguments"):
        raise Wrong(Code.CALL_ARGUMENTS, why)
