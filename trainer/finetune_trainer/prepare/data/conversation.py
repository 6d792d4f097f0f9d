"""Conversations as rows have them (chat `messages`, ShareGPT, prompts and completions of messages, Alpaca) to one form.

One message is `role`, `content` and further keys that a chat template may read; a message of weight 0 carries no loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_trainer.prepare.data.calls import calls_as_text, tool_calls, tools_of
from finetune_trainer.prepare.data.formats import Code, json_type
from finetune_trainer.prepare.data.wrong import Wrong

__all__ = ["Message", "Wrong", "check_order", "checked_messages", "messages_of", "prompt_and_completion", "tools_of"]

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")  # what a message's reasoning is called
# what ShareGPT and its descendants call the roles
SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "function": "tool",
    "tool": "tool",
    "observation": "tool",
}
CALL = "function_call"  # LLaMA-Factory's speaker of a tool call, which is the value as JSON text
NEAR = {**SHAREGPT, "bot": "assistant", "ai": "assistant", "prompter": "user", "customer": "user", "agent": "assistant"}


def checked_messages(column: str, value: Any) -> tuple[Message, ...]:
    """Return the checked messages of one row; of `role`/`content` or ShareGPT's `from`/`value`.

    Raises:
        Wrong: it breaks a rule.
    """
    messages = messages_of(column, value)
    check_order(column, messages)
    return messages


def prompt_and_completion(prompt: Any, completion: Any, names: Mapping[str, str]) -> tuple[Message, ...]:
    """Return the messages of TRL's conversational prompt-completion: only the completion carries loss.

    Raises:
        Wrong: as of `conversation`.
    """
    before = [dict(message) for message in messages_of(names["prompt"], prompt)]
    for message in before:
        if message["role"] == "assistant":
            message["weight"] = 0
    messages = (*before, *messages_of(names["completion"], completion))
    check_order(names["completion"], messages)
    return messages


def messages_of(column: str, value: Any) -> tuple[Message, ...]:
    """Return the checked messages of a part of a conversation, in any order.

    Raises:
        Wrong: one of them breaks a rule, or there is none.
    """
    if value is None:
        raise Wrong(Code.NULL_VALUE, f"{column!r} is null")
    if not isinstance(value, list):
        hint = ""
        if isinstance(value, str) and value.lstrip().startswith("[{"):
            hint = ", and this string holds JSON: write the list itself, as JSON lines or Parquet can"
        raise Wrong(Code.WRONG_TYPE, f"{column!r} is {json_type(value)}; it must be a list of messages{hint}")
    if not value:
        raise Wrong(Code.NO_MESSAGES, f"{column!r} is an empty list")
    return tuple(item if _is_plain(item) else _message(f"{column}[{index}]", item) for index, item in enumerate(value))


def _is_plain(item: Any) -> bool:
    """Return whether a message needs no check: most do not, and the checks of the others take time."""
    if type(item) is not dict or len(item) != 2:
        return False
    role, content = item.get("role"), item.get("content")
    return type(role) is str and role in ROLES and type(content) is str and content.isascii() and bool(content.strip())


def _message(where: str, item: Any) -> Message:
    if not isinstance(item, dict):
        raise Wrong(Code.INVALID_MESSAGE, f"{where} is {json_type(item)}; a message is an object")
    message = {key: value for key, value in item.items() if value is not None}  # columnar files fill up with nulls
    if message.get("function_call"):  # no chat template reads it: beside a content it would be lost without a word
        seen = f"{where} has a 'function_call'"
        raise Wrong(Code.OLD_CALLS, f"{seen}, which is what OpenAI's rows had before tool calls")
    sharegpt = "from" in message and "role" not in message
    role_key, text_key = ("from", "value") if sharegpt else ("role", "content")
    if role_key not in message:
        keys = ", ".join(map(repr, message)) or "nothing"
        raise Wrong(Code.INVALID_MESSAGE, f"{where} has no 'role' (and no 'from'), but {keys}")
    if sharegpt and str(message["from"]).strip().lower() == CALL and isinstance(message.get("value"), str):
        message |= {"from": "assistant", "value": "", "tool_calls": calls_as_text(f"{where}.value", message["value"])}
    role = _role(f"{where}.{role_key}", message.pop(role_key), sharegpt)
    content = message.pop(text_key, None)
    calls = tool_calls(f"{where}.tool_calls", message.pop("tool_calls", []))
    if content is None and not (role == "assistant" and calls):
        raise _without_content(where, text_key, message)
    made: Message = {"role": role}
    if content is not None:
        made["content"] = _content(f"{where}.{text_key}", content)
        if not made["content"].strip() and calls:
            del made["content"]  # null, empty and missing are the same: the template gets what it can take
        elif not made["content"].strip() and role in ("user", "assistant"):
            raise Wrong(Code.EMPTY_MESSAGE, f"{where}.{text_key} is empty, and its role is {role}")
    for name in REASONING:
        if name in message and not _content(f"{where}.{name}", message[name]).strip():
            del message[name]
    if calls:
        made["tool_calls"] = calls
    if "weight" in message:
        message["weight"] = _weight(f"{where}.weight", message["weight"])
    return made | message


def _without_content(where: str, text_key: str, message: Message) -> Wrong:
    if isinstance(message.get("refusal"), str):
        return Wrong(Code.INVALID_MESSAGE, f"{where} has a 'refusal' and no {text_key!r}: write it as content")
    return Wrong(Code.INVALID_MESSAGE, f"{where} has no {text_key!r}")


def _role(where: str, role: Any, sharegpt: bool) -> str:
    if isinstance(role, str):
        known = SHAREGPT.get(role.strip().lower()) if sharegpt else role if role in ROLES else None
        if known is not None:
            return known
        near = NEAR.get(role.strip().lower()) or (role.strip().lower() if role.strip().lower() in ROLES else None)
        meant = f"; did you mean {near!r}?" if near else ""
        raise Wrong(Code.UNKNOWN_ROLE, f"{where} is {role[:40]!r}; roles are {', '.join(ROLES)}{meant}")
    raise Wrong(Code.INVALID_MESSAGE, f"{where} is {json_type(role)}; it must be a string")


def _content(where: str, content: Any) -> str:
    if isinstance(content, list):
        return "".join(_part(f"{where}[{index}]", part) for index, part in enumerate(content))
    if not isinstance(content, str):
        raise Wrong(Code.WRONG_TYPE, f"{where} is {json_type(content)}; it must be a string")
    _encodable(where, content)
    return content


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        _encodable(where, part["text"])
        text: str = part["text"]
        return text
    if isinstance(kind, str) and kind != "text":
        raise Wrong(Code.NOT_TEXT, f"{where} is of type {kind!r}; only text can be learnt from")
    raise Wrong(Code.WRONG_TYPE, f"{where} is not a text part: it must be {{type: text, text: ...}}")


def _weight(where: str, weight: Any) -> int:
    if isinstance(weight, (int, float)) and weight in (0, 1):
        return int(weight)
    seen = weight if isinstance(weight, (int, float)) else json_type(weight)
    raise Wrong(Code.INVALID_WEIGHT, f"{where} is {seen}; a message has weight 0 (no loss) or 1")


def _encodable(where: str, value: str) -> None:
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise Wrong(Code.BAD_UNICODE, f"{where} holds half of a character (\\u{code:04x} alone)") from None


def check_order(column: str, messages: Sequence[Message]) -> None:
    """Check the rules over a whole conversation.

    The chat template judges two turns of one role in a row, and system messages later than the first.

    Raises:
        Wrong: one is broken.
    """
    before = ""
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "tool" and before not in ("assistant", "tool"):
            after = f"after {before}" if before else "first"
            raise Wrong(
                Code.WRONG_ROLE_ORDER,
                f"{column}[{index}] is of role tool, {after}; a tool answers an assistant's message",
            )
        before = role
    spoken = [message for message in messages if message["role"] == "assistant"]
    if not spoken:
        raise Wrong(Code.NO_ASSISTANT, "no assistant message")
    if all(message.get("weight", 1) == 0 for message in spoken):
        raise Wrong(Code.NOTHING_TO_LEARN, "every assistant message has weight 0")
