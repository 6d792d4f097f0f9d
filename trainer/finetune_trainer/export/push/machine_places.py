"""The check that an artifact names no place of the machine that made it, before it leaves that machine."""

import re
from collections.abc import Sequence
from pathlib import Path

from finetune_api.contract import File
from finetune_api.errors import Problem, SpecError
from finetune_trainer.export.evidence.evidence_paths import EVIDENCE
from finetune_trainer.export.layout import CARD
from finetune_trainer.model.files import ADAPTER_CONFIG, CONFIG

NAMED = (CARD, CONFIG, ADAPTER_CONFIG, File.MANIFEST.value)


def check_portable(folder: Path, uri: str, places: Sequence[str]) -> None:
    """Refuse an artifact that names a place.

    Args:
        uri: where it goes.
        places: folders of this machine, as paths or file:// URIs; others are skipped.

    Raises:
        SpecError: a file names one of the places.
    """
    paths = [one.removeprefix("file://").rstrip("/") for one in places if one.startswith(("/", "file://"))]
    evidence = sorted(one for one in (folder / EVIDENCE).glob("*") if one.suffix in (".json", ".md"))
    for file in [*(folder / name for name in NAMED if (folder / name).is_file()), *evidence]:
        text = file.read_text("utf-8", "replace")
        for path in filter(None, paths):
            if _names(text, path):
                name = file.relative_to(folder).as_posix()
                raise SpecError(
                    Problem(
                        code="MachinePath",
                        field="spec.export.push",
                        message=f"{name} names {path}, a folder of this machine, and would go to {uri}",
                        cure="push the form merged, or take the base model from the hub (spec.model.name)",
                    )
                )


def _names(text: str, path: str) -> bool:
    """Return whether a text names a folder or something below it; /data is neither in /.../datasets nor in /my/data."""
    return re.search(rf"(?:file://|(?<![\w./-])){re.escape(path)}(?![\w-]|\.\w)", text) is not None
