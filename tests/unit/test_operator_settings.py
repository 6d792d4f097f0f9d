"""The operator's configuration: flags, environment, and errors that say what to do."""

from pathlib import Path

import pytest

from finetune_api.errors import SpecError
from finetune_operator.settings import parse


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "key").write_text("0123456789abcdef\n")
    return {
        "POD_NAME": "operator-1",
        "POD_NAMESPACE": "system",
        "FINETUNE_OPERATOR_TRAINER_IMAGE": "trainer:1",
        "FINETUNE_OPERATOR_TOKEN_KEY_FILE": str(tmp_path / "key"),
    }


def test_the_environment_is_enough(environ: dict[str, str]) -> None:
    settings = parse([], {**environ, "FINETUNE_OPERATOR_NAMESPACES": "a, b", "FINETUNE_OPERATOR_FORCE_DELETE": "false"})
    assert (settings.namespaces, settings.identity, settings.lease_namespace) == (("a", "b"), "operator-1", "system")
    assert settings.token_key == b"0123456789abcdef"
    assert settings.force_delete is False


@pytest.mark.parametrize(("given", "user"), [({}, 1000), ({"FINETUNE_OPERATOR_RUN_AS_USER": ""}, None)])
def test_pods_have_a_user_unless_the_platform_assigns_one(
    environ: dict[str, str], given: dict[str, str], user: int | None
) -> None:
    assert parse([], environ | given).run_as_user == user


def test_lists_are_separated_by_commas(environ: dict[str, str]) -> None:
    given = parse(
        ["--allowed-priority-classes", "low, high"], {**environ, "FINETUNE_OPERATOR_ALLOWED_VOLUME_TYPES": "nfs"}
    )
    assert given.allowed_priority_classes == ("low", "high")
    assert given.allowed_volume_types == ("nfs",)
    assert given.allowed_service_accounts == (), "any"


def test_a_flag_wins(environ: dict[str, str]) -> None:
    assert parse(["--poll-seconds", "2"], {**environ, "FINETUNE_OPERATOR_POLL_SECONDS": "9"}).poll_seconds == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"FINETUNE_OPERATOR_TRAINER_IMAGE": ""}, "--trainer-image: '' is not set"),
        ({"FINETUNE_OPERATOR_NAMESPACES": "a,B_c"}, "'B_c' is not a valid name of a namespace"),
        ({"FINETUNE_OPERATOR_TOKEN_KEY_FILE": "/nowhere/key"}, "No such file"),
        ({"FINETUNE_OPERATOR_TOKEN_KEY_FILE": "/dev/null"}, "fewer than 16 characters"),
    ],
)
def test_a_wrong_setting_is_named_with_its_cure(environ: dict[str, str], change: dict[str, str], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse([], environ | change)
    assert said in str(refused.value)
    assert "->" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POLL_SECONDS", "soon"),
        ("CONCURRENCY", "0"),
        ("FORCE_DELETE", "maybe"),
        ("LOG_LEVEL", "loud"),
        ("HUB_ENDPOINT", "hub"),
        ("RUN_AS_USER", "0"),
        ("RUN_AS_USER", "trainer"),
    ],
)
def test_a_malformed_value_is_refused(
    environ: dict[str, str], name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([], {**environ, f"FINETUNE_OPERATOR_{name}": value})
    assert name.lower().replace("_", "-") in capsys.readouterr().err
