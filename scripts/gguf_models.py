"""Write the table of the models that llama.cpp's converter knows, out of its source; the converter is not imported.

python scripts/gguf_models.py > trainer/finetune_trainer/prepare/plan/gguf_models.toml
"""

import ast

from finetune_trainer.export.gguf.llama_cpp import fetch_converter


def main() -> None:
    """Print the table."""
    folder = fetch_converter()
    tree = ast.parse((folder / "conversion" / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP" and node.value:
            names = sorted(ast.literal_eval(node.value))
    listed = "".join(f'    "{name}",\n' for name in names)
    print("# Made by scripts/gguf_models.py from llama.cpp's converter; do not edit.\n")
    print(f'version = "llama-cpp-python {folder.name.rpartition("-")[2]}"\nmodels = [\n{listed}]')


if __name__ == "__main__":
    main()
