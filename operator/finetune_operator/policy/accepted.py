"""The spec that counts: the current one, or the last accepted one if the current one breaks a rule. Pure.

The Job of a stage carries the spec that it was made from, so the operator need not store the last accepted one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1 import FineTuneJob, FineTuneJobStatus, parse_job, reread_job
from finetune_api.v1alpha1.data_names import is_plain_path
from finetune_operator.objects.facts import StageJob
from finetune_operator.objects.job_identity import AcceptedJob, Owner
from finetune_operator.objects.kinds import Object
from finetune_operator.policy.conditions import accepted


@dataclass(frozen=True)
class Reading:
    """The outcome of reading a spec.

    Attributes:
        job: with the spec that counts; None if the current spec is refused and no accepted one can be read.
        written: the spec that counts, as JSON; the current one if `job` is None.
        problems: what is wrong with the current spec.
    """

    job: AcceptedJob | None
    written: Object
    problems: tuple[Problem, ...] = ()


def read_spec(raw: Object, status: FineTuneJobStatus, jobs: Sequence[StageJob]) -> Reading:
    """Return the spec that counts.

    Args:
        raw: the FineTuneJob as the API server returned it.
        status: as it was last written.
        jobs: of the FineTuneJob.
    """
    owner = owner_of(raw)
    try:
        job = parse_job(raw)
        problems = [*_relative_paths(job), *_lost_copies(job)]
    except SpecError as error:
        problems = list(error.problems)
    if not problems:
        return Reading(AcceptedJob(owner, job.spec, raw["spec"]), raw["spec"])
    if not accepted(status):
        return Reading(None, raw["spec"], tuple(problems))
    kept = reread_job({**raw, "spec": _with_accepted_fields(raw["spec"], problems, jobs)})
    if kept is None:
        return Reading(None, raw["spec"], tuple(problems))
    written = kept.model_dump(mode="json", by_alias=True, exclude_unset=True)["spec"]
    return Reading(AcceptedJob(owner, kept.spec, written), written, tuple(problems))


def owner_of(raw: Object) -> Owner:
    """Return the identity of a FineTuneJob as the API server returned it."""
    metadata = raw["metadata"]
    return Owner(metadata["name"], metadata["namespace"], metadata["uid"])


def _with_accepted_fields(spec: Object, problems: Sequence[Problem], jobs: Sequence[StageJob]) -> Object:
    """Return the spec with the faulty fields as in the newest Job. Other changes, such as suspend, take effect."""
    newest = max((job for job in jobs if job.written), key=lambda job: job.created, default=None)
    before = written_spec(newest) if newest else None
    if before is None:
        return spec
    at_fault = {problem.field.split(".")[1] for problem in problems if problem.field.startswith("spec.")}
    kept = {name: value for name, value in spec.items() if name not in at_fault}
    return kept | {name: before[name] for name in at_fault if name in before}


def written_spec(job: StageJob) -> Object | None:
    """Return the spec that a Job was made from; None if the Job carries no spec."""
    try:
        spec = json.loads(job.written)["spec"]
    except (ValueError, KeyError, TypeError):  # another program changed the annotation
        return None
    return spec if isinstance(spec, dict) else None


def _relative_paths(job: FineTuneJob) -> list[Problem]:
    """Return a problem for each relative path. Only `finetune run` has a folder to resolve it."""
    dataset = job.spec.dataset
    uris = {
        "spec.storage.uri": job.spec.storage.uri,
        "spec.model.uri": job.spec.model.uri,
        "spec.dataset.train": dataset.train,
        **{f"spec.dataset.mix[{index}].uri": part.uri for index, part in enumerate(dataset.mix or ())},
        "spec.dataset.eval": dataset.eval if isinstance(dataset.eval, str) else None,
        **{field: uri for field, uri in _pushed_to(job) if not uri.startswith("file:///")},
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


def _pushed_to(job: FineTuneJob) -> list[tuple[str, str]]:
    """Return the storages that get copies, each with its field."""
    places = enumerate(job.spec.export.push)
    return [(f"spec.export.push[{index}].storage.uri", one.storage.uri) for index, one in places if one.storage]


def _lost_copies(job: FineTuneJob) -> list[Problem]:
    """Return a problem for each push to a folder that ends with the export pod."""
    template = job.spec.pod_template
    volumes = [one.mount_path.rstrip("/") for one in template.volume_mounts] if template else []
    return [
        Problem(
            code="FolderOfPod",
            field=field,
            message=f"is {uri!r}; no volume of podTemplate is mounted there, so the copy would be lost with the pod",
            cure="use s3://, or a folder below a mountPath of spec.podTemplate.volumeMounts",
        )
        for field, uri in _pushed_to(job)
        if uri.startswith("file:///") and not any(f"{unquote(uri[7:])}/".startswith(f"{one}/") for one in volumes)
    ]
