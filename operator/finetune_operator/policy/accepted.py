"""Which spec a reconcile goes by: the one on the object, or what was accepted before where that one is refused. Pure.

The Job of a stage carries the spec that it was made from, so the last accepted one need not be remembered.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1 import FineTuneJob, FineTuneJobStatus, parse_job, reread_job
from finetune_api.v1alpha1.data_names import is_plain_path
from finetune_operator.objects.facts import Object, StageJob
from finetune_operator.policy.conditions import accepted


@dataclass(frozen=True)
class Reading:
    """A spec that was read.

    Attributes:
        job: None if the spec is refused and none was accepted before, or none that this version can read.
        spec: as pods are given it.
        problems: what is wrong with the spec on the object.
    """

    job: FineTuneJob | None
    spec: Object
    problems: tuple[Problem, ...] = ()


def read_spec(raw: Object, status: FineTuneJobStatus, jobs: Sequence[StageJob]) -> Reading:
    """Return the spec that counts.

    Args:
        raw: the FineTuneJob as the API server returned it.
        status: as it was last written.
        jobs: of the FineTuneJob.
    """
    try:
        job = parse_job(raw)
        problems = _relative_paths(job)
    except SpecError as error:
        problems = list(error.problems)
    if not problems:
        return Reading(job, raw["spec"])
    if not accepted(status):
        return Reading(None, raw["spec"], tuple(problems))
    kept = reread_job({**raw, "spec": _with_accepted_fields(raw["spec"], problems, jobs)})
    if kept is None:
        return Reading(None, raw["spec"], tuple(problems))
    spec = kept.model_dump(mode="json", by_alias=True, exclude_unset=True)["spec"]
    return Reading(kept, spec, tuple(problems))


def _with_accepted_fields(spec: Object, problems: Sequence[Problem], jobs: Sequence[StageJob]) -> Object:
    """The spec, with the fields at fault as the newest Job has them: what else was changed is good, such as suspend."""
    newest = max((job for job in jobs if job.written), key=lambda job: job.created, default=None)
    before = written_spec(newest) if newest else None
    if before is None:
        return spec
    at_fault = {problem.field.split(".")[1] for problem in problems if problem.field.startswith("spec.")}
    kept = {name: value for name, value in spec.items() if name not in at_fault}
    return kept | {name: before[name] for name in at_fault if name in before}


def written_spec(job: StageJob) -> Object | None:
    """The spec that a Job was made from."""
    try:
        spec = json.loads(job.written)["spec"]
    except (ValueError, KeyError, TypeError):  # not of our making
        return None
    return spec if isinstance(spec, dict) else None


def _relative_paths(job: FineTuneJob) -> list[Problem]:
    """What only `finetune run` can mean: a path relative to the folder it was started in, or to the job file."""
    dataset = job.spec.dataset
    uris = {
        "spec.storage.uri": job.spec.storage.uri,
        "spec.model.uri": job.spec.model.uri,
        "spec.dataset.train": dataset.train,
        **{f"spec.dataset.mix[{index}].uri": part.uri for index, part in enumerate(dataset.mix or ())},
        "spec.dataset.eval": dataset.eval if isinstance(dataset.eval, str) else None,
    }
    return [
        Problem(
            code="RelativePath",
            field=field,
            message=f"is {uri!r}; pods have no current folder, and no files of the machine where the job was written",
            cure="use s3://, or the absolute path of a volume that podTemplate mounts",
        )
        for field, uri in uris.items()
        if uri and ((uri.startswith("file://") and not uri.startswith("file:///")) or is_plain_path(uri))
    ]
