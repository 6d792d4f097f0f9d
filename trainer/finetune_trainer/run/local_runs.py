"""The identity of local runs. On a cluster it is the object's uid; here it is derived from the job. So the same job
continues its last run, and a changed job or `--fresh` begins another run and keeps the one before."""

import hashlib
import json
from typing import Any

from finetune_api.v1alpha1.field_facts import run_identity
from finetune_trainer.storage import NotFoundError, ObjectStore


class LocalRuns:
    """The runs of one job. `local-runs.json`, above them, holds the number of runs of each spec.

    Args:
        store: the job's storage.
        prefix: key prefix of the job, above its runs, with the trailing slash.
        spec: the spec as the user wrote it, with overrides.
    """

    def __init__(self, store: ObjectStore, prefix: str, spec: dict[str, Any]) -> None:
        identity = json.dumps(run_identity(spec), sort_keys=True)
        self._digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        self._store = store
        self._key = f"{prefix}local-runs.json"

    def last(self) -> str | None:
        """Return the uid of the last run of this very spec; None if there is none."""
        number = self._read().get(self._digest)
        return f"{self._digest}-{number}" if number else None

    def begin(self) -> str:
        """Record a new run and return its uid."""
        runs = self._read()
        runs[self._digest] = runs.get(self._digest, 0) + 1
        self._store.put(self._key, json.dumps(runs, indent=2, sort_keys=True).encode())
        return f"{self._digest}-{runs[self._digest]}"

    def _read(self) -> dict[str, int]:
        try:
            runs: dict[str, int] = json.loads(self._store.get(self._key))
        except NotFoundError:
            return {}
        return runs
