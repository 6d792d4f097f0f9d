"""Configuration of the operator. Each setting stands once, in `Settings`: its field is a flag whose default is an
environment variable."""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from finetune_api.errors import Problem, SpecError

PREFIX = "FINETUNE_OPERATOR_"
NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
LEVELS = ("debug", "info", "warning", "error")
SHORTEST_KEY = 16  # bytes


@dataclass(frozen=True)
class Flag:
    """The flag of a setting.

    Attributes:
        about: what the setting is, for --help.
        default: as text; empty = the setting is required, or may be empty.
        convert: from text to the value; raises argparse.ArgumentTypeError.
        name: if it is not the name of the field.
        variable: the environment variable, if it is not the name with PREFIX.
        empty: what an empty value means, for --help. With it, an empty variable replaces the default.
    """

    about: str
    default: str = ""
    convert: Callable[[str], object] = str
    name: str = ""
    variable: str = ""
    empty: str = ""


def _at_least(least: float, kind: type[int] | type[float] = float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least:g}")
        return value

    return convert


def _one_of(*choices: str) -> Callable[[str], str]:
    """Return a converter like argparse's `choices`, which ignores defaults."""

    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} must be one of {', '.join(choices)}")
        return text

    return convert


def _user(text: str) -> int | None:
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of 1 or more: no pod runs as root")
    return int(text)


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


def _list(about: str) -> Flag:
    return Flag(f"{about}, separated by commas", convert=_names, empty="all")


@dataclass(frozen=True)
class Settings:
    """The configuration of this operator.

    Attributes:
        token_key: key of the bearer tokens of all gangs (HMAC of the job's uid).
        identity: name of this replica in the Lease.
        fence_seconds: agents without a leader stop after 30 s, so a shorter time risks two pods of one index.
        run_as_user: user and group; None = the platform assigns them.
    """

    namespaces: Annotated[tuple[str, ...], _list("namespaces to watch")]
    trainer_image: Annotated[str, Flag("image of pods whose job names none")]
    image_pull_policy: Annotated[
        str, Flag("pull policy of the trainer image", "IfNotPresent", _one_of("Always", "IfNotPresent", "Never"))
    ]
    token_key: Annotated[
        bytes,
        Flag(
            "file with the key of the gangs' bearer tokens",
            "/etc/finetune-operator/token/key",
            name="token-key-file",
        ),
    ]
    lease_namespace: Annotated[str, Flag("namespace of the Lease", variable="POD_NAMESPACE")]
    identity: Annotated[str, Flag("name of this replica", variable="POD_NAME")]
    lease_seconds: Annotated[float, Flag("silence after which a leader is replaced", "15", _at_least(2))]
    resync_seconds: Annotated[float, Flag("longest time between two reconciles of a job", "300", _at_least(5))]
    poll_seconds: Annotated[float, Flag("time between two polls of a gang's progress", "5", _at_least(0.2))]
    progress_seconds: Annotated[float, Flag("time between two status writes for progress alone", "60", _at_least(0.2))]
    force_delete: Annotated[bool, Flag("delete pods on lost nodes, so that they are replaced", "true", _boolean)]
    fence_seconds: Annotated[
        float, Flag("shortest grace period after which a pod on a lost node is deleted", "35", _at_least(0))
    ]
    node_toleration_seconds: Annotated[
        int, Flag("time that pods stay on a node that is not ready", "30", _at_least(0, int))
    ]
    server_start_seconds: Annotated[
        float, Flag("time after which an export goes on without a server that cannot start", "600", _at_least(0))
    ]
    concurrency: Annotated[int, Flag("jobs reconciled at the same time", "8", _at_least(1, int))]
    requests: Annotated[int, Flag("requests to the API server at the same time", "32", _at_least(1, int))]
    http_port: Annotated[int, Flag("port of /healthz, /readyz and /metrics", "8080", _at_least(0, int))]
    log_level: Annotated[str, Flag("lowest level that is logged", "info", _one_of(*LEVELS))]
    read_nodes: Annotated[bool, Flag("read the labels of nodes for the GPUs that plans use", "true", _boolean)]
    hub_endpoint: Annotated[str, Flag("URL of a mirror of the Hugging Face hub", convert=_url, empty="the hub itself")]
    run_as_user: Annotated[
        int | None, Flag("user and group of every pod", "1000", _user, empty="the platform assigns them")
    ]
    allowed_volume_types: Annotated[
        tuple[str, ...], _list("types of volumes that jobs may add, such as configMap,persistentVolumeClaim")
    ] = ()
    allowed_service_accounts: Annotated[tuple[str, ...], _list("service accounts that jobs may name")] = ()
    allowed_priority_classes: Annotated[tuple[str, ...], _list("priority classes that jobs may name")] = ()


def parse(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings from flags, and from the environment where a flag is missing.

    Raises:
        SpecError: a value breaks a rule.
        SystemExit: a value is malformed; argparse prints the error.
    """
    flags = _flags()
    values = vars(_parser(flags, os.environ if environ is None else environ).parse_args(arguments))
    for name in values["namespaces"]:
        if not NAMESPACE.match(name):
            raise _wrong("namespaces", name, "is not a valid name of a namespace", "separate names by commas")
    for required in ("trainer_image", "lease_namespace", "identity"):
        if not values[required]:
            name = _flag_name(required, flags[required])
            raise _wrong(name, values[required], "is not set", f"give --{name}; the chart sets it")
    return Settings(**values | {"token_key": _read_key(values["token_key"])})


def _flags() -> dict[str, Flag]:
    """Return the flag of each field of Settings."""
    hints: dict[str, Any] = get_type_hints(Settings, include_extras=True)
    return {field: hint.__metadata__[0] for field, hint in hints.items()}


def _flag_name(field: str, flag: Flag) -> str:
    return flag.name or field.replace("_", "-")


def _parser(flags: Mapping[str, Flag], environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m finetune_operator",
        description="The operator runs FineTuneJobs on Kubernetes. Every flag can be given as an environment variable: "
        f"--trainer-image is {PREFIX}TRAINER_IMAGE.",
    )
    for field, flag in flags.items():
        name = _flag_name(field, flag)
        variable = flag.variable or PREFIX + name.upper().replace("-", "_")
        default = environ.get(variable, flag.default)
        about = f"{flag.about}; empty = {flag.empty}" if flag.empty else flag.about
        shown = flag.default or ("" if flag.empty else "required")
        parser.add_argument(
            f"--{name}",
            dest=field,
            default=default if flag.empty else default or flag.default,
            type=flag.convert,
            help=f"{about} [{'; '.join(filter(None, (variable, shown)))}]".replace("%", "%%"),
        )
    return parser


def _read_key(path: str) -> bytes:
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise _wrong(
            "token-key-file",
            path,
            f"cannot be read: {error.strerror}",
            "create the Secret that the chart value tokenKey names",
        ) from None
    if len(key) < SHORTEST_KEY:
        cure = "create one with: openssl rand -hex 32"
        raise _wrong("token-key-file", path, f"holds fewer than {SHORTEST_KEY} characters", cure)
    return key


def _wrong(name: str, value: str, what: str, cure: str) -> SpecError:
    return SpecError(Problem(code="SettingInvalid", field=f"--{name}", message=f"{value!r} {what}", cure=cure))
