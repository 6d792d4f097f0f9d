"""Plain paths of a job file, which only mean something on the machine where the file lies: they become file:// URIs.

On a cluster they stay as they are, and the operator refuses them.
"""

from pathlib import Path

from finetune_api.v1alpha1 import DatasetSpec, FineTuneJob
from finetune_api.v1alpha1.data_names import is_hub_name
from finetune_api.v1alpha1.input_specs import MixSource


def with_local_paths(job: FineTuneJob, folder: Path) -> tuple[FineTuneJob, list[str]]:
    """Return a job whose data is named by URIs, and a note for each name that could mean the hub as well.

    Args:
        folder: where the job file lies: relative paths start there. `~` is the user's home.
    """
    notes: list[str] = []
    spec = job.spec.dataset

    def uri(text: str, field: str) -> str:
        if "://" in text:
            return text
        path = folder / Path(text).expanduser()
        if is_hub_name(text):
            if not path.exists():
                return text
            notes.append(f"{field}: {text} is read from {path}; the data set of the hub is hf://datasets/{text}")
        return f"file://{str(path.absolute()).replace('%', '%25')}"

    changed: dict[str, object] = {}
    if spec.train is not None:
        changed["train"] = uri(spec.train, "spec.dataset.train")
    if isinstance(spec.eval, str):
        changed["eval"] = uri(spec.eval, "spec.dataset.eval")
    if spec.mix is not None:
        changed["mix"] = [_moved(one, uri(one.uri, f"spec.dataset.mix[{i}].uri")) for i, one in enumerate(spec.mix)]
    if all(getattr(spec, name) == value for name, value in changed.items()):
        return job, notes
    dataset: DatasetSpec = spec.model_copy(update=changed)
    return job.model_copy(update={"spec": job.spec.model_copy(update={"dataset": dataset})}), notes


def _moved(source: MixSource, uri: str) -> MixSource:
    return source.model_copy(update={"uri": uri})
