"""What data may be called without a scheme: a path of the user's machine, or a data set of the hub."""

import re

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?:@[^?]+)?(?:\?(?:split|config)=.*)?", re.ASCII)
SUFFIX = re.compile(r"\.(?:jsonl?|ndjson|jsonlines|csv|tsv|tab|txt|text|parquet|pq|arrow|feather|ipc)\b", re.IGNORECASE)


def is_hub_name(text: str) -> bool:
    """Whether a text may name a data set on the hub, `organisation/name?split=...`, and is no path to a file."""
    return HUB_NAME.fullmatch(text) is not None and not text.startswith((".", "~")) and not SUFFIX.search(text)


def is_plain_path(text: str) -> bool:
    """Whether a text is a path that only the user's machine knows."""
    return "://" not in text and not is_hub_name(text)
