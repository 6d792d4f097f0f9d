"""`finetune reproduce`: an artifact's training, run again from its evidence, and whether the weights are the same."""

import argparse
import json

from rich.console import Console

from finetune_api.contract import ExitCode
from finetune_trainer.run.output_paths import probe_file, probe_folder, write_file
from finetune_trainer.run.screen import Screen


def reproduce_command(options: argparse.Namespace, console: Console) -> int:
    """Run `finetune reproduce`.

    Raises:
        SpecError: there is no artifact at the place, its evidence lacks something, or this machine is too small.
        DataError: the artifact or an input was changed.
        StorageError: a storage refused.
    """
    probe_file(options.result, "--result")
    probe_folder(options.work_dir, "--work-dir")
    from finetune_trainer.export.evidence.artifact_copy import local_artifact
    from finetune_trainer.export.evidence.verification import verify_artifact
    from finetune_trainer.reproduction.recorded_run import read_evidence
    from finetune_trainer.reproduction.reproduction_steps import Reproduction

    screen = Screen(console)
    with local_artifact(options.artifact, lambda line: screen.show_line("fetch", line)) as folder:
        found = verify_artifact(folder, options.public_key)
        screen.show_line("artifact", f"{found.files:,} files are as its export made them")
        recorded = read_evidence(folder)
        work = options.work_dir.absolute()
        answer = Reproduction(folder, recorded, work, screen, options.band, options.storage or "").run()
    for line in answer.details:
        screen.show_line("compare", line)
    screen.show_line("answer", answer.sentence)
    if options.result:
        told = {"reproduced": answer.reproduced, "answer": answer.sentence, "details": list(answer.details)}
        write_file(options.result, json.dumps(told, ensure_ascii=False, indent=2) + "\n", "--result")
    return ExitCode.OK if answer.reproduced else ExitCode.NOT_REPRODUCED
