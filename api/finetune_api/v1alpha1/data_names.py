"""Names of data without a scheme: a path on the user's machine, or a data set on the hub."""

import re

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?:@[^?]+)?(?:\?(?:split|config)=.*)?", re.ASCII)
SUFFIX = re.compile(r"\.(?:jsonl?|ndjson|jsonlines|csv|tsv|tab|txt|text|parquet|pq|arrow|feather|ipc)\b", re.IGNORECASE)


def is_hub_name(text: str) -> bool:
    """Return whether a text may name a data set on the hub, `organisation/name?split=...`, and not a file."""
    return HUB_NAME.fullmatch(text) is not None and not text.startswith((".", "~")) and not SUFFIX.search(text)


def is_plain_path(text: str) -> bool:
    """Return whether a text is a path on the user's machine."""
    return "://" not in text and not is_hub_name(text)
