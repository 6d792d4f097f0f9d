"""Where data comes from: the files behind each uri of the job, known by fingerprints before they are read."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from finetune_api.contract import CREDENTIALS, Env
from finetune_api.errors import DataError, FineTuneError
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data.file_places import Place, hashed, source_changed
from finetune_trainer.prepare.data.locate import locate_files
from finetune_trainer.prepare.data.tally import grouped

TRAIN, EVAL, MIX = "spec.dataset.train", "spec.dataset.eval", "spec.dataset.mix"
ASKED = 16  # files at a time, whether they are what they were

_OWN: dict[str, Env] = {credential.name: credential.data_variable for credential in CREDENTIALS}
_PLACE: dict[str, Env] = {
    Env.STORAGE_ENDPOINT: Env.DATA_ENDPOINT,
    Env.STORAGE_REGION: Env.DATA_REGION,
    Env.STORAGE_CA: Env.DATA_CA,
}


@dataclass(frozen=True)
class Source:
    """The files behind one uri.

    Attributes:
        field: the field of the job that names it.
        weight: how often its rows are seen in an epoch.
    """

    uri: str
    field: str
    files: tuple[Place, ...]
    weight: float = 1.0

    @property
    def fingerprint(self) -> str:
        """Changes when a file does, or when there are others."""
        return hashed(self.weight, *(file.fingerprint for file in self.files))

    def check_unchanged(self) -> None:
        """Raise DataError if a file differs from the file that was located."""
        with ThreadPoolExecutor(ASKED) as pool:  # each may be a request to a store
            same = list(pool.map(lambda file: file.is_unchanged(), self.files))
        if problems := [
            source_changed(file.name, self.field) for file, ok in zip(self.files, same, strict=True) if not ok
        ]:
            raise DataError(grouped(problems))


@dataclass(frozen=True)
class Sources:
    """All that a data set is made from; `evaluation` is None without separate files."""

    train: tuple[Source, ...]
    evaluation: Source | None

    def all(self) -> tuple[Source, ...]:
        """Return training sources in the order of the job, then evaluation's."""
        return (*self.train, self.evaluation) if self.evaluation else self.train

    @property
    def fingerprint(self) -> str:
        """Changes when any file or weight does."""
        evaluation = self.evaluation.fingerprint if self.evaluation else ""
        return hashed(*(source.fingerprint for source in self.train), "evaluation", evaluation)

    def check_unchanged(self) -> None:
        """Raise DataError if a file differs from the file that was located."""
        for source in self.all():
            source.check_unchanged()


def locate_all(spec: DatasetSpec, environ: Mapping[str, str]) -> Sources:
    """Find all files of a data set.

    Args:
        environ: credentials and endpoints, of the job's storage and, where given, the data's own.

    Raises:
        SpecError: a uri cannot be read.
        DataError: a file is not there; every one that is missing.
        StorageError: a store refuses or is unreachable.
    """
    environ = data_environ(environ)
    wanted = [(spec.train, TRAIN, 1.0)] if spec.train is not None else []
    wanted += [(part.uri, f"{MIX}[{index}].uri", part.weight) for index, part in enumerate(spec.mix or ())]
    if isinstance(spec.eval, str):
        wanted.append((spec.eval, EVAL, 1.0))
    found: list[Source] = []
    errors: list[FineTuneError] = []
    for uri, field, weight in wanted:
        try:
            found.append(Source(uri, field, locate_files(uri, field, environ, spec.format), weight))
        except FineTuneError as error:
            errors.append(error)
    if errors:
        raise type(errors[0])([problem for error in errors for problem in error.problems])
    has_own = isinstance(spec.eval, str)
    return Sources(tuple(found[:-1] if has_own else found), found[-1] if has_own else None)


def data_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for reading data: the data's own endpoint and keys replace the job's.

    Another endpoint has neither the region nor the certificate of the job's. Keys replace the job's as a whole: a
    session token belongs to its own key.
    """
    own = dict(environ)
    if environ.get(Env.DATA_ENDPOINT):
        for name in _PLACE:
            own.pop(name, None)
        own.pop("AWS_DEFAULT_REGION", None)
    if environ.get(Env.DATA_ACCESS_KEY) or environ.get(Env.DATA_SECRET_KEY):
        for name in _OWN:
            own.pop(name, None)
    own |= {name: environ[source] for name, source in (_PLACE | _OWN).items() if environ.get(source)}
    return own
