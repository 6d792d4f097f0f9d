"""Prepared data sets that were unused for long are removed from storage; an index entry has the time of the last use.

One prepare stage a day looks for them, the first of the day. A data set goes manifest first, so that no job finds half
of one, and its index entries last, so that an interrupted removal is taken up again by the next look.
"""

import json
import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import islice

from finetune_api.contract import File, dataset_prefix
from finetune_api.errors import StorageError
from finetune_trainer.storage import ChangedError, NotFoundError, ObjectStore, read_manifest

KEPT_DAYS = 90
REST = timedelta(days=1)  # between two looks, over all jobs of a storage
MOST = 100  # data sets that one look removes: a job does not wait long for another's rubbish
LOOKED = "datasets/looked.json"  # when the last look began
ROOT = "datasets/"
INDEX = f"{ROOT}index/"
ADDRESS = re.compile(r"[0-9a-f]{64}")


def expire_daily(store: ObjectStore, now: datetime) -> list[str]:
    """Look for old data sets, unless a stage did so within a day; of stages that race for it one looks.

    Args, returns and raises: as of `expire`.
    """
    there = store.head(LOOKED)
    if there is not None and now - _looked(store) < REST:
        return []
    try:
        store.swap(LOOKED, json.dumps({"at": now.isoformat()}).encode(), there.etag if there else None)
    except ChangedError:  # another stage was first
        return []
    return expire(store, now)


def _looked(store: ObjectStore) -> datetime:
    try:
        return datetime.fromisoformat(json.loads(store.get(LOOKED))["at"])
    except (NotFoundError, ValueError, KeyError, TypeError):
        return datetime.min.replace(tzinfo=UTC)


def expire(store: ObjectStore, now: datetime, days: float = KEPT_DAYS, most: int = MOST) -> list[str]:
    """Remove data sets that were neither made nor reused for this number of days.

    Args:
        now: with a time zone.
        most: data sets to remove; the next look takes the others.

    Returns:
        The addresses (sha256) of those removed.

    Raises:
        StorageError: the store refuses or is unreachable.
    """
    leads: dict[str, list[str]] = defaultdict(list)
    used: dict[str, datetime] = {}
    files: dict[str, list[str]] = defaultdict(list)
    for info in store.list(ROOT):
        address = info.key.removeprefix(ROOT).partition("/")[0]
        if info.key.startswith(INDEX):
            address, at = _lead(store, info.key)
            leads[address].append(info.key)
            used[address] = max(at, used.get(address, at))
        elif ADDRESS.fullmatch(address):
            files[address].append(info.key)
    old = now - timedelta(days=days)
    # an entry that is young enough spares a look at the manifest
    doubtful = [address for address in files if address not in used or used[address] < old]
    expired = (address for address in doubtful if _last_use(store, address, used) < old)
    removed = list(islice(expired, most))
    for address in removed:
        manifest = dataset_prefix(address) + File.MANIFEST
        store.delete([manifest])
        store.delete(key for key in files[address] if key != manifest)
        store.delete(leads[address])
    return removed


def _lead(store: ObjectStore, key: str) -> tuple[str, datetime]:
    """Return the data set that an index entry leads to, and when it was last used."""
    try:
        entry = json.loads(store.get(key))
        return str(entry["facts"]["sha256"]), datetime.fromisoformat(entry["used"])
    except (NotFoundError, ValueError, KeyError, TypeError):  # of another version, or removed meanwhile
        return "", datetime.min.replace(tzinfo=UTC)


def _last_use(store: ObjectStore, address: str, used: dict[str, datetime]) -> datetime:
    """Return when a data set was made or last used; the end of time if unknown: it may be in the making."""
    for_ever = datetime.max.replace(tzinfo=UTC)
    try:
        manifest = read_manifest(store, dataset_prefix(address))
    except StorageError:  # not for us to judge
        return for_ever
    if manifest is None:
        return used.get(address, for_ever)
    return max(datetime.fromisoformat(manifest.created), used.get(address, datetime.min.replace(tzinfo=UTC)))
