"""`finetune verify`: whether an artifact is what its export made, and who signed it."""

import argparse

from rich.console import Console

from finetune_api.contract import ExitCode
from finetune_trainer.run.screen import Screen


def verify_command(options: argparse.Namespace, console: Console) -> int:
    """Run `finetune verify`.

    Raises:
        SpecError: there is no artifact at the place, or the key cannot be read.
        DataError: the artifact is not what its export made.
        StorageError: the storage of the artifact refused.
    """
    from finetune_trainer.export.evidence.artifact_copy import local_artifact
    from finetune_trainer.export.evidence.verification import verify_artifact
    from finetune_trainer.pages.short_texts import sized

    screen = Screen(console)
    with local_artifact(options.artifact, lambda line: screen.show_line("fetch", line)) as folder:
        found = verify_artifact(folder, options.public_key)
    screen.show_line("files", f"{found.files:,} files, {sized(found.size_bytes)}: every hash is that of MANIFEST.json")
    screen.show_line("lineage", f"names these very files, and {found.materials:,} inputs by their digests")
    if found.key:
        screen.show_line("signature", f"holds, by the key with sha256 {found.key}")
    elif found.signed:
        screen.show_line("signature", "there is one, and it was not checked: name the signer's key with --public-key")
    else:
        screen.show_line("signature", "there is none")
    return ExitCode.OK
