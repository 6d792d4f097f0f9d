"""What the installed transformers has models for: its tables of Auto classes, read without importing torch.

The module with the tables imports torch (seconds, and 680 MB of memory), so its source is read: each table is an
`OrderedDict` of pairs of literals. tests/unit/test_gate.py compares the result with the imported tables.
"""

import ast
import functools
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# Auto classes whose models write tokens. An encoder-decoder is listed as a masked language model and as a decoder too,
# and an encoder as a decoder, so the first that fits is what an architecture was made for.
ENCODER_DECODER, ENCODER, DECODER = "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModelForCausalLM"
WRITERS = (ENCODER_DECODER, ENCODER, DECODER)
MODELS, CONFIGURATIONS = "modeling_auto.py", "auto_mappings.py"


def has_model(auto_class: str, model_type: str) -> bool:
    """Return whether an Auto class has a model of an architecture."""
    return model_type in _table(MODELS, f"{_mapping(auto_class)}_NAMES")


def class_of(auto_class: str, model_type: str) -> str | None:
    """Return the name of the class that an Auto class makes of an architecture; None if it has none."""
    return _table(MODELS, f"{_mapping(auto_class)}_NAMES").get(model_type)


def is_known(model_type: str) -> bool:
    """Return whether transformers has a configuration of an architecture."""
    return model_type in _table(CONFIGURATIONS, "CONFIG_MAPPING_NAMES") or has_model("AutoModel", model_type)


def writer_of(model_type: str) -> str | None:
    """Return the Auto class of the tokens that an architecture was made to write; None if it writes none."""
    return next((name for name in WRITERS if has_model(name, model_type)), None)


def installed() -> str:
    """Return the version of transformers, for people."""
    return f"transformers {version('transformers')}"


@functools.cache
def _table(file: str, name: str) -> Mapping[str, str]:
    """Return the pairs of a table, by its variable's name."""
    for node in _parsed(file).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=given)], value=ast.Call(args=[pairs, *_])) if given == name:
                return dict(ast.literal_eval(pairs))
    raise LookupError(f"{file} of {installed()} has no table {name}")


@functools.cache
def _mapping(auto_class: str) -> str:
    """Return the name of the mapping of an Auto class; its table has the same name with `_NAMES`."""
    for node in _parsed(MODELS).body:
        if isinstance(node, ast.ClassDef) and auto_class in (node.name, node.name.removeprefix("_")):
            for line in node.body:
                match line:
                    case ast.Assign(targets=[ast.Name(id="_model_mapping")], value=ast.Name(id=name)):
                        return name
    raise LookupError(f"{MODELS} of {installed()} has no class {auto_class}")


@functools.cache
def _parsed(file: str) -> ast.Module:
    found = find_spec("transformers")
    assert found is not None
    assert found.origin is not None
    return ast.parse((Path(found.origin).parent / "models" / "auto" / file).read_text("utf-8"))
