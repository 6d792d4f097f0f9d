"""The tree of the fields of the models, by their YAML names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from finetune_api.v1alpha1.job import FineTuneJob

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Branch:
    """A field: its path of YAML names, its definition, and the model below it or in its list, if any."""

    path: tuple[str, ...]
    info: FieldInfo
    child: type[BaseModel] | None

    @property
    def dotted(self) -> str:
        """The path with dots."""
        return ".".join(self.path)

    @property
    def is_leaf(self) -> bool:
        """Whether no model is below the field."""
        return self.child is None


def key_of(name: str, info: FieldInfo) -> str:
    """Return the YAML name of a field."""
    return info.alias or name


def children(model: type[BaseModel]) -> dict[str, Branch]:
    """Return the fields of a model by YAML name."""
    fields = {key_of(name, info): info for name, info in model.model_fields.items()}
    return {key: Branch((key,), info, _model_in(info.annotation)) for key, info in fields.items()}


def walk(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[Branch]:
    """Yield every field below a model; an object comes before its fields."""
    for key, branch in children(model).items():
        here = Branch((*prefix, key), branch.info, branch.child)
        yield here
        if here.child is not None:
            yield from walk(here.child, here.path)


def spec_fields() -> list[Branch]:
    """Return every field of `spec`."""
    spec = children(FineTuneJob)["spec"].child
    assert spec is not None
    return list(walk(spec, ("spec",)))


def model_at(path: Path) -> type[BaseModel] | None:
    """Return the model at a path of the job, or None. List indices are skipped."""
    model: type[BaseModel] | None = FineTuneJob
    for part in path:
        if model is None:
            return None
        if isinstance(part, int):
            continue
        branch = children(model).get(part)
        model = branch.child if branch else None
    return model


def dotted(path: Path) -> str:
    """Return a path for a message: `spec.podTemplate.env[0].name`, `spec.resourcesPerNode.limits[nvidia.com/gpu]`."""
    text = ""
    for part in path:
        if isinstance(part, int) or not part.replace("_", "").replace("-", "").isalnum():
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text or "(the job)"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first model in an annotation: through Optional, Annotated, unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for model in map(_model_in, get_args(annotation)) if model is not None), None)
