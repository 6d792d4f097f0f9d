"""What may be shown of a job's values. The report and the lineage are passed on, and a value may hold a credential."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
# A Secret's name stays: the fields that refer to one end with Ref.
SECRET = re.compile(r"((api|access|private)[-_]?key|passw(or)?d|passphrase|secret|token|authorization)$", re.IGNORECASE)
ADDRESS = re.compile(r"\b(https?)://([^\s\"'<>]*)", re.IGNORECASE)
ELSEWHERE = "file:///..."  # in place of a folder on the machine of the run
FILE = re.compile(r"\bfile://(?!/\.\.\.)[^\s\"'<>]*", re.IGNORECASE)
LOGIN = re.compile(r"\b([a-z][a-z0-9+.-]*)://[^\s/@:]*:[^\s/]*@", re.IGNORECASE)


def shown_value(value: Any, name: str = "") -> Any:
    """Return a value of JSON without credentials: the login and the query of an address, and what has a secret's name.

    Args:
        name: of the value; of a path only the last part counts.
    """
    if value is not None and SECRET.search(name):
        return HIDDEN
    if isinstance(value, Mapping):
        return {shown_text(str(key)): shown_value(one, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [shown_value(one) for one in value]
    return shown_text(value) if isinstance(value, str) else value


def shown_text(text: str) -> str:
    """Return a text whose addresses have no login and, on the web, no query: a signature of a signed URL is one."""
    return LOGIN.sub(r"\1://", ADDRESS.sub(_bare, text))


def portable_text(text: str, storage: str = "") -> str:
    """Return a text whose file:// URIs name no folder of this machine: what follows the storage, else the last name.

    Args:
        storage: URI of the job's storage.
    """
    if storage.startswith("file://"):
        text = text.replace(storage.rstrip("/"), ELSEWHERE)
    return FILE.sub(lambda found: f"{ELSEWHERE}/{found[0].rstrip('/').rpartition('/')[2]}", text)


def portable_value(value: Any, storage: str) -> Any:
    """Return a value of JSON whose texts are those of `portable_text`."""
    if isinstance(value, Mapping):
        return {name: portable_value(one, storage) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [portable_value(one, storage) for one in value]
    return portable_text(value, storage) if isinstance(value, str) else value


def _bare(found: re.Match[str]) -> str:
    place = re.split(r"[?#]", found[2], maxsplit=1)[0]
    host, slash, path = place.partition("/")
    return f"{found[1]}://{host.rpartition('@')[2]}{slash}{path}"
