"""Whether a value fits a JSON schema: the parts of the standard that descriptions of tools use.

Source: JSON Schema 2020-12, validation (https://json-schema.org/draft/2020-12). What is not here, such as `$ref`,
`pattern` and limits of numbers, fits everything: a tool refuses it when it is called, and no answer is misjudged here.
"""

from collections.abc import Mapping
from typing import Any

JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def misfit(value: Any, schema: Any, where: str) -> str | None:
    """Return why a value does not fit, as `where has no 'city'`; None if it fits.

    Args:
        where: name of the value in the sentence.
    """
    if not isinstance(schema, Mapping) or "$ref" in schema:
        return None
    for name in ("anyOf", "oneOf"):
        options = schema.get(name)
        if isinstance(options, list) and options and all(misfit(value, option, where) for option in options):
            return f"{where} fits none of the forms that its schema allows"
    return _of_type(value, schema, where) or _of_choice(value, schema, where) or _within(value, schema, where)


def _of_type(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    given = schema.get("type")
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    if not names or any(name not in JSON_TYPES or _is_a(value, name) for name in names):
        return None
    seen = "null" if value is None else repr(value)[:40]
    return f"{where} is {seen}; the tool takes {' or '.join(names)}"


def _is_a(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, JSON_TYPES[name])


def _of_choice(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    choices = schema.get("enum")
    if not isinstance(choices, list) or not choices or value in choices:
        return None
    return f"{where} is {repr(value)[:40]}; the tool takes {', '.join(map(repr, choices[:8]))}"


def _within(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    if isinstance(value, list):
        items = enumerate(value)
        return next((why for at, item in items if (why := misfit(item, schema.get("items"), f"{where}[{at}]"))), None)
    if not isinstance(value, dict):
        return None
    properties, required = schema.get("properties"), schema.get("required")
    properties = properties if isinstance(properties, Mapping) else {}
    for name in required if isinstance(required, list) else ():
        if name not in value:
            return f"{where} has no {name!r}, which the tool needs"
    for name, item in value.items():
        if name in properties:
            if why := misfit(item, properties[name], f"{where}.{name}"):
                return why
        elif schema.get("additionalProperties") is False:
            return f"{where} has {name!r}, which the tool does not take: it takes {', '.join(map(repr, properties))}"
    return None
