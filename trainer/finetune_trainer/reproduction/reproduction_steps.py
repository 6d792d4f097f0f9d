"""The steps of `finetune reproduce`, from the evidence of an artifact to the verdict."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune_api.contract import Env
from finetune_api.errors import Problem, SpecError
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.trained_on import CPU, TrainedOn
from finetune_trainer.reproduction.checked_inputs import bring_inputs
from finetune_trainer.reproduction.checked_plan import check_plan
from finetune_trainer.reproduction.compared_weights import compare_weights
from finetune_trainer.reproduction.new_training import NewTraining
from finetune_trainer.reproduction.recorded_run import RecordedRun
from finetune_trainer.reproduction.reproduction_answer import ReproductionAnswer, reproduction_of
from finetune_trainer.run.screen import Screen
from finetune_trainer.storage import open_store
from finetune_trainer.worker.this_machine import this_machine

UNKNOWN_MACHINE = "machine and packages: unknown then, because an older version made the checkpoint"
GPU_SUMS = "order of sums: a GPU has no fixed one"
RESTARTED = "machine before a restart: unknown, because the evidence has the machine of the last steps only"
OTHER_CODE = "source files of finetune-operator: others then than here"


@dataclass(frozen=True)
class Reproduction:
    """One artifact that is to be reproduced.

    Attributes:
        folder: of the artifact, verified.
        storage: URI of the run's storage; empty = as the lineage has it.
        work: scratch folder.
        band: largest distance of the weights, if bits may differ.
    """

    folder: Path
    recorded: RecordedRun
    work: Path
    screen: Screen
    band: float
    storage: str = ""

    def run(self) -> ReproductionAnswer:
        """Check the inputs, train again, and compare.

        Raises:
            DataError: an input is missing or has changed.
            SpecError: this machine cannot run the plan, the plan has settings that no job can have, the evidence lacks
                something, or the user has not confirmed the endpoint of the storage.
            StorageError: the storage of the run refused.
            FineTuneError: the training failed.
        """
        recorded, show = self.recorded, self.screen.show_line
        uri = self.storage or recorded.storage_around(self.folder)
        store = open_store(uri, environment_for(uri, recorded.storage_spec, os.environ))
        plan = recorded.plan(store)
        check_plan(plan)
        check_machine(recorded.trained_on, plan, torch.cuda.device_count())
        here = self._here()
        training = self._training(plan, here)
        show("inputs", f"checking them in {store.uri}")
        bring_inputs(recorded, plan, store, training.store, lambda line: show("inputs", line))
        apart = differences(recorded, here)
        for one in apart:
            show("differs", one)
        self.screen.show_plan(plan)
        show("train", f"again, up to step {recorded.step:,} of {plan.schedule.max_steps:,}, in {training.work}")
        checkpoint = training.train(self.screen)
        if checkpoint is None:
            return ReproductionAnswer(False, f"not reproduced: the new training ended before step {recorded.step:,}")
        again = training.export(checkpoint, training.work / "export", lambda line: show("export", line))
        base = training.store.path(plan.model.prefix.rstrip("/"))
        show("compare", "the weights of both")
        adapter = training.store.path(plan.adapter.prefix.rstrip("/")) if plan.adapter else None
        weights = compare_weights(self.folder, again, base, plan.model.prefix, adapter)
        return reproduction_of(weights, apart, (recorded.metrics, checkpoint.info.metrics), self.band)

    def _training(self, plan: Plan, here: TrainedOn) -> NewTraining:
        uid, then = identity(self.recorded, here), self.recorded.trained_on
        on_cpu = then is not None and then.on_cpu
        threads = then.threads if then and on_cpu else 0
        work = self.work / f"reproduce-{uid}"
        return NewTraining(self.recorded, plan, work, uid, threads=threads, hides_gpus=on_cpu)

    def _here(self) -> TrainedOn:
        """Return the machine as the new training uses it."""
        then = self.recorded.trained_on
        here = this_machine(then.threads if then else 0)
        return here.model_copy(update={"device": CPU}) if then and then.on_cpu else here


def identity(recorded: RecordedRun, here: TrainedOn) -> str:
    """Return the name of a new training: the same for one plan, inputs, step, machine and code, so an interrupted
    one goes on."""
    inputs = {name: one.digest for name, one in recorded.inputs.items()}
    machine = here.model_dump(mode="json")
    known = json.dumps([recorded.run, recorded.plan_digest, recorded.step, inputs, machine], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()[:8]


def differences(recorded: RecordedRun, here: TrainedOn) -> list[str]:
    """Return a sentence for everything that may change bits and differs between then and now."""
    then = recorded.trained_on
    found = [UNKNOWN_MACHINE] if then is None else then.differences(here)
    if then is not None and not then.on_cpu:
        found.append(GPU_SUMS)
    if recorded.generation > 1:
        found.append(RESTARTED)
    if recorded.source_files != here.source_files:
        found.append(OTHER_CODE)
    return found


def check_machine(then: TrainedOn | None, plan: Plan, gpus: int) -> None:
    """Check that this machine has as many GPUs as the plan has ranks, if the training used GPUs.

    Raises:
        SpecError: it has fewer.
    """
    if then is None or then.on_cpu or gpus >= plan.world_size:
        return
    message = f"was trained on {plan.world_size:,} x {then.device}, and this machine has {gpus:,} GPUs"
    cure = f"use a machine with {plan.world_size:,} GPUs"
    raise SpecError(Problem(code="TooFewGPUs", field="artifact", message=message, cure=cure))


def environment_for(uri: str, storage: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment to reach the storage of a run with, with the region of the job where it names none.

    The endpoint is the environment's: an artifact of others must not choose the server that gets requests signed with
    the keys of this machine.

    Args:
        storage: `spec.storage` of the job, by the lineage.

    Raises:
        SpecError: the job had an endpoint, and the environment has none.
    """
    if (endpoint := storage.get("endpoint")) and "://" in uri and not uri.startswith("file://"):
        name = Env.STORAGE_ENDPOINT.value
        if not environ.get(name):
            message = (
                f"the lineage says that {uri} is on the server {endpoint!r}, which would get requests that are signed "
                f"with the keys of this machine; {name} is not set"
            )
            cure = f"if you trust this server, set {name} to its address; otherwise name a copy with --storage"
            raise SpecError(Problem(code="EndpointUnconfirmed", field="storage", message=message, cure=cure))
    region = {Env.STORAGE_REGION.value: storage["region"]} if storage.get("region") else {}
    return {**region, **environ}
