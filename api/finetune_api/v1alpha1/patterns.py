"""The regular expressions of the models in words."""

from finetune_api.v1alpha1.push_spec import HUB_REPO_PATTERN, OCI_REFERENCE_PATTERN
from finetune_api.v1alpha1.spec_base import (
    BENCHMARK_PATTERN,
    DATA_URI_PATTERN,
    LABEL_PATTERN,
    STORE_SCHEMES,
    STORE_URI_PATTERN,
)

_MEANINGS = {
    LABEL_PATTERN: (
        "lower-case letters, digits and dashes, with a letter or digit at both ends",
        "write a name such as support-bot",
    ),
    r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$": (
        "lower-case letters, digits, dashes and dots, with a letter or digit at both ends",
        "write the name of a Kubernetes object, such as s3-creds",
    ),
    DATA_URI_PATTERN: (
        "a URI that starts with s3://, https://, hf:// or file://, a path, or the name of a data set on the hub",
        "write one such as s3://bucket/train.jsonl, hf://datasets/organisation/name, or data/train.csv on this machine",
    ),
    STORE_URI_PATTERN: (
        f"a URI that starts with {' or '.join(f'{scheme}://' for scheme in STORE_SCHEMES)}",
        "write one such as s3://bucket/prefix, or file://folder for a folder on this machine",
    ),
    BENCHMARK_PATTERN: (
        "letters, digits, dots, dashes and underscores, with a letter or digit first",
        "write the name of a task of lm-evaluation-harness, such as arc_easy",
    ),
    r"^https?://[^\s]+$": (
        "a URL that starts with http:// or https://",
        "write one such as https://minio.example:9000",
    ),
    HUB_REPO_PATTERN: (
        "an organisation or user and a name, with a slash between them",
        "write one such as team/support-bot",
    ),
    OCI_REFERENCE_PATTERN: (
        "a registry, a repository in lower case and a tag",
        "write one such as registry.example/team/support-bot:v1",
    ),
    r"^(latest|best|[0-9]{1,9})$": ("latest, best or a step", 'write latest, best, or a step in quotes such as "200"'),
    r"^[0-9]{1,9}(\.[0-9]{1,4})?$": ("an amount in quotes", 'write one such as "2.50"'),
}


def meaning(pattern: str) -> tuple[str, str]:
    """Return the rule and the cure for a pattern of the models.

    Raises:
        KeyError: the pattern has no words here (a test checks that each pattern has).
    """
    return _MEANINGS[pattern]
