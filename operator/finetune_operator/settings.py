"""Configuration of the operator: a flag for each setting, whose default is an environment variable."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.errors import Problem, SpecError

PREFIX = "FINETUNE_OPERATOR_"
NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
LEVELS = ("debug", "info", "warning", "error")
SHORTEST_KEY = 16  # bytes


@dataclass(frozen=True)
class Settings:
    """How this operator works.

    Attributes:
        namespaces: what is watched; empty = all.
        trainer_image: image of every pod whose job names none.
        token_key: key of the bearer tokens of all gangs (HMAC of the job's uid).
        lease_namespace, identity: where the Lease lies, and who this replica is in it.
        lease_seconds: a leader that is not heard for so long is replaced.
        resync_seconds: every job is looked at again at least so often.
        poll_seconds: between two looks at a running gang's /progress.
        progress_seconds: between two writes of a job's status for progress alone.
        force_delete: delete pods on dead nodes for good, so that the Job controller replaces them.
        fence_seconds: not before so long after their grace period: agents without a leader stop after 30 s.
        node_toleration_seconds: how long a pod stays on a node that is not ready.
        concurrency: jobs that are reconciled at the same time.
        requests: requests to the API server at the same time.
        read_nodes: look at the labels of nodes for the GPUs that plans are made for.
        hub_endpoint: a mirror of the Hugging Face hub for prepare pods; empty = the hub.
        run_as_user: user and group of every pod; None = the platform assigns them.
        allowed_volume_types, allowed_service_accounts, allowed_priority_classes: what jobs may ask for; empty = any.
    """

    namespaces: tuple[str, ...]
    trainer_image: str
    image_pull_policy: str
    token_key: bytes
    lease_namespace: str
    identity: str
    lease_seconds: float
    resync_seconds: float
    poll_seconds: float
    progress_seconds: float
    force_delete: bool
    fence_seconds: float
    node_toleration_seconds: int
    concurrency: int
    requests: int
    http_port: int
    log_level: str
    read_nodes: bool
    hub_endpoint: str
    run_as_user: int | None
    allowed_volume_types: tuple[str, ...] = ()
    allowed_service_accounts: tuple[str, ...] = ()
    allowed_priority_classes: tuple[str, ...] = ()


def parse(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags, and from the environment where there is no flag.

    Raises:
        SpecError: a value breaks a rule; says which, and what to do.
    """
    given = _parser(os.environ if environ is None else environ).parse_args(arguments)
    for name in given.namespaces:
        if not NAMESPACE.match(name):
            raise _wrong("namespaces", name, "is no name of a namespace", "separate names by commas")
    return Settings(
        namespaces=given.namespaces,
        trainer_image=_given(given.trainer_image, "trainer-image"),
        image_pull_policy=given.image_pull_policy,
        token_key=_key(given.token_key_file),
        lease_namespace=_given(given.lease_namespace, "lease-namespace"),
        identity=_given(given.identity, "identity"),
        lease_seconds=given.lease_seconds,
        resync_seconds=given.resync_seconds,
        poll_seconds=given.poll_seconds,
        progress_seconds=given.progress_seconds,
        force_delete=given.force_delete,
        fence_seconds=given.fence_seconds,
        node_toleration_seconds=given.node_toleration_seconds,
        concurrency=given.concurrency,
        requests=given.requests,
        http_port=given.http_port,
        log_level=given.log_level,
        read_nodes=given.read_nodes,
        hub_endpoint=given.hub_endpoint,
        run_as_user=given.run_as_user,
        allowed_volume_types=given.allowed_volume_types,
        allowed_service_accounts=given.allowed_service_accounts,
        allowed_priority_classes=given.allowed_priority_classes,
    )


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m finetune_operator",
        description="Runs FineTuneJobs on Kubernetes. Every flag can be given as an environment variable: "
        f"--trainer-image is {PREFIX}TRAINER_IMAGE.",
    )

    def flag(name: str, default: str, about: str, variable: str = "", **more: object) -> None:
        variable = variable or PREFIX + name.upper().replace("-", "_")
        parser.add_argument(
            f"--{name}",
            default=environ.get(variable) or default,
            help=f"{about} [{variable}; {default or 'required'}]".replace("%", "%%"),
            **more,  # type: ignore[arg-type]
        )

    def number(name: str, default: str, about: str, least: float, kind: type[int] | type[float] = float) -> None:
        flag(name, default, about, type=_at_least(least, kind))

    def names(name: str, about: str) -> None:
        variable = PREFIX + name.upper().replace("-", "_")
        parser.add_argument(
            f"--{name}",
            default=environ.get(variable, ""),
            type=_names,
            help=f"{about}, separated by commas; empty = all [{variable}]",
        )

    names("namespaces", "namespaces to watch")
    names("allowed-volume-types", "types of volumes that jobs may add, such as configMap,persistentVolumeClaim")
    names("allowed-service-accounts", "service accounts that jobs may name")
    names("allowed-priority-classes", "priority classes that jobs may name")
    parser.add_argument(
        "--run-as-user",
        default=environ.get(f"{PREFIX}RUN_AS_USER", "1000"),
        type=_user,
        help=f"user and group of every pod; empty = the platform assigns them [{PREFIX}RUN_AS_USER; 1000]",
    )
    flag("trainer-image", "", "image of training pods whose job names none")
    flag(
        "image-pull-policy",
        "IfNotPresent",
        "pull policy of training pods",
        type=_one_of("Always", "IfNotPresent", "Never"),
    )
    flag("token-key-file", "/etc/finetune-operator/token/key", "file with the key of the gangs' bearer tokens")
    flag("lease-namespace", "", "namespace of the Lease", variable="POD_NAMESPACE")
    flag("identity", "", "name of this replica", variable="POD_NAME")
    flag("force-delete", "true", "delete pods on dead nodes for good", type=_boolean)
    flag("read-nodes", "true", "look at the labels of nodes for their GPUs", type=_boolean)
    flag("hub-endpoint", "", "URL of a mirror of the Hugging Face hub", type=_url)
    flag("log-level", "info", "what is logged", type=_one_of(*LEVELS))
    number("lease-seconds", "15", "a silent leader is replaced after so long", 2)
    number("resync-seconds", "300", "every job is looked at again at least so often", 5)
    number("poll-seconds", "5", "between two looks at a gang's progress", 0.2)
    number("progress-seconds", "60", "between two writes of a status for progress alone", 0.2)
    number("fence-seconds", "35", "pods of dead nodes are deleted so long after their grace period", 0)
    number("node-toleration-seconds", "30", "how long pods stay on a node that is not ready", 0, int)
    number("concurrency", "8", "jobs reconciled at the same time", 1, int)
    number("requests", "32", "requests to the API server at the same time", 1, int)
    number("http-port", "8080", "port of /healthz, /readyz and /metrics", 0, int)
    return parser


def _at_least(least: float, kind: type[int] | type[float]) -> object:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least:g}")
        return value

    return convert


def _user(text: str) -> int | None:
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of 1 or more: no pod runs as root")
    return int(text)


def _one_of(*choices: str) -> object:
    """As `choices` of argparse, which does not look at defaults."""

    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} must be one of {', '.join(choices)}")
        return text

    return convert


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text.lower() == "true"


def _url(text: str) -> str:
    if text and not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} must start with http:// or https://")
    return text


def _given(value: str, name: str) -> str:
    if value:
        return value
    raise _wrong(name, value, "is not set", f"give --{name}; the chart sets it")


def _key(path: str) -> bytes:
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise _wrong(
            "token-key-file",
            path,
            f"cannot be read: {error.strerror}",
            "make the Secret that the chart's tokenKey names",
        ) from None
    if len(key) < SHORTEST_KEY:
        cure = "make one with: openssl rand -hex 32"
        raise _wrong("token-key-file", path, f"holds fewer than {SHORTEST_KEY} characters", cure)
    return key


def _wrong(name: str, value: str, what: str, cure: str) -> SpecError:
    return SpecError(Problem(code="SettingInvalid", field=f"--{name}", message=f"{value!r} {what}", cure=cure))
