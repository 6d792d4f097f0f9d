"""Building blocks of the API: three base classes of models, and bounded strings, lists and unions.

Everything is bounded (maxLength, maxItems, maxProperties), because the API server computes the cost of CEL rules from
the bounds. Validation is as strict as in the API server: "2" is not a number and 1 is not a boolean.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from finetune_api.quantity import PATTERN as QUANTITY_PATTERN
from finetune_api.quantity import parse_quantity

# The longest name that is made from the name of a job is the host name of a pod, `<name>-train-<attempt>-<index>`. It
# has at most 63 characters: 7 for "-train-", 4 for the attempt, 1 for a dash and 4 for the index.
MAX_NAME_LENGTH = 63 - len("-train-") - 4 - len("-") - 4
MAX_WEIGHT = 1_000_000
LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
BENCHMARK_PATTERN = r"^[A-Za-z0-9][-A-Za-z0-9_.]*$"
STORE_SCHEMES = ("s3", "file")  # of the backends in finetune_trainer.storage
STORE_URI_PATTERN = rf"^({'|'.join(STORE_SCHEMES)})://[^\s]+$"
DATA_URI_PATTERN = r"^((s3|hf|file)://\S(.*\S)?|https://\S+|[^:\s]([^:\n]*[^:\s])?)$"


def broken(code: str, message: str, cure: str) -> PydanticCustomError:
    """Return a validation error with a message and a cure of ours; `parse_job` reports them unchanged."""
    return PydanticCustomError("finetune", "{message}", {"code": code, "message": message, "cure": cure})


class Kubernetes(BaseModel):
    """A part of a job with YAML keys in camelCase."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=to_camel,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Verbatim(BaseModel):
    """A part of a job whose keys are the names of a library (transformers, PEFT); None = the plan chooses."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def given(self) -> dict[str, Any]:
        """Return the values that the user wrote, by their own names."""
        written = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return {name: value for name, value in written.items() if value is not None}


class Observed(BaseModel):
    """A part of the status. Unknown fields are skipped: a newer operator may have written them."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        validate_by_name=True,
        validate_by_alias=True,
    )


def _quantity(value: Any) -> Any:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, str)) or parse_quantity(value) < 0:
            raise ValueError
    except ValueError:
        raise broken(
            "InvalidQuantity",
            f"is {shown(value)}; must be a Kubernetes quantity of 0 or more",
            'write a whole number or a string such as 8, "500m" or 64Gi',
        ) from None
    return value


def shown(value: Any) -> str:
    """Return a value as a message shows it: in YAML's words, quoted if it is text, shortened if it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:70]}... ({len(str(value))} characters)"


def _words(value: Any) -> Any:
    if isinstance(value, list) and len(value) <= 256 and all(isinstance(word, str) and word for word in value):
        return value
    if isinstance(value, str) and value:
        return value
    raise broken("WrongType", f"is {shown(value)}; must be a string or a list of strings", "write one of the two")


def _names(value: Any) -> Any:
    """Turn one name into a list of one, as transformers does."""
    value = [value] if isinstance(value, str) else value
    if isinstance(value, list) and len(value) <= 16 and all(isinstance(name, str) and name for name in value):
        return value
    raise broken("WrongType", f"is {shown(value)}; must be a name or a list of names", "write one of the two")


def _class_weights(value: Any) -> Any:
    """Check `balanced`, or a weight for each of some labels."""
    if value == "balanced":
        return value
    if not isinstance(value, dict) or not value or not all(isinstance(label, str) for label in value):
        message = f"is {shown(value)}; must be balanced, or an object with a weight for each label"
        raise broken("WrongType", message, "write balanced, or such as {spam: 5, ham: 1}")
    for label, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
            message = f"has {shown(weight)} for {label!r}; a weight is a number from 0 to {MAX_WEIGHT:,}"
            raise broken("OutOfRange", message, "write a number such as 2.5")
    return {label: float(weight) for label, weight in value.items()}


def _flag_or_word(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        return value
    raise broken("WrongType", f"is {shown(value)}; must be true, false or a string", "write one of the three")


def _steps_or_ratio(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if whole or (isinstance(value, float) and (0 <= value < 1 or (value >= 1 and value.is_integer()))):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    raise broken(
        "OutOfRange",
        f"is {shown(value)}; must be a whole number of steps, or a ratio of all steps below 1",
        "write a number of steps such as 100, or a ratio such as 0.1",
    )


# A structural schema cannot express these unions. The API server stores their values unchecked; the operator checks.
_WORDS = {
    "x-kubernetes-preserve-unknown-fields": True,
    "maxLength": 1024,
    "maxItems": 256,
    "items": {"type": "string", "maxLength": 256},
}
_NAMES = {
    "x-kubernetes-preserve-unknown-fields": True,
    "maxLength": 256,
    "maxItems": 16,
    "maxProperties": 0,
    "items": {"type": "string", "minLength": 1, "maxLength": 256},
}
_CLASS_WEIGHTS = {
    "x-kubernetes-preserve-unknown-fields": True,
    "maxLength": 8,
    "maxItems": 0,
    "maxProperties": 10_000,
}
_FLAG_OR_WORD = {"x-kubernetes-preserve-unknown-fields": True, "maxLength": 256, "maxItems": 0, "maxProperties": 0}

Quantity = Annotated[
    int | str,
    BeforeValidator(_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 32}),
]
StepsOrRatio = Annotated[
    int | float, BeforeValidator(_steps_or_ratio), WithJsonSchema({"type": "number", "minimum": 0})
]
Words = Annotated[str | list[str], BeforeValidator(_words), WithJsonSchema(_WORDS)]
Names = Annotated[list[str], BeforeValidator(_names), WithJsonSchema(_NAMES)]
ClassWeights = Annotated[
    Literal["balanced"] | dict[str, float], BeforeValidator(_class_weights), WithJsonSchema(_CLASS_WEIGHTS)
]
FlagOrWord = Annotated[bool | str, BeforeValidator(_flag_or_word), WithJsonSchema(_FLAG_OR_WORD)]

FreeObject = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
    Field(max_length=256),
]

Label = Annotated[str, StringConstraints(pattern=LABEL_PATTERN, max_length=63)]
JobName = Annotated[str, StringConstraints(pattern=LABEL_PATTERN, max_length=MAX_NAME_LENGTH)]
Subdomain = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Text = Annotated[str, StringConstraints(max_length=4096)]
DataUri = Annotated[str, StringConstraints(pattern=DATA_URI_PATTERN, max_length=2048)]
StoreUri = Annotated[str, StringConstraints(pattern=STORE_URI_PATTERN, max_length=2048)]
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=2048)]
Words256 = Annotated[list[Word], Field(max_length=256)]
StringMap = Annotated[dict[str, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=64)]
QuantityMap = Annotated[dict[str, Quantity], Field(max_length=32)]
