"""KServe's own definition of an InferenceService, a JSON schema for kubeconform, from KServe's Go module."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import cache

MODULE, VERSION = "github.com/kserve/kserve", "v0.17.0"
SUM = "h1:IaynaBFzVQz1Xyrw5n3ncqzd5Y7L1RkO+YWvVwwtMQE="  # of the module; Go compares its zip with it
DEFINITION = "config/crd/full/serving.kserve.io_inferenceservices.yaml"


def kserve_schema() -> Path:
    """Return the schema's file, fetched and converted once."""
    file = cache() / "tools" / f"kserve-{VERSION}.json"
    if not file.exists():
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(_schema(_module() / DEFINITION)))
        partial.rename(file)
    return file


def _module() -> Path:
    go = shutil.which("go")
    if go is None:
        if os.environ.get("CI") == "true":
            raise RuntimeError("there is no `go` on PATH: install Go 1.26 or newer")
        pytest.skip("there is no `go` on PATH, which fetches KServe's definition")
    command = [go, "mod", "download", "-json", f"{MODULE}@{VERSION}"]
    found = json.loads(subprocess.run(command, cwd="/", check=True, capture_output=True, text=True).stdout)
    assert found["Sum"] == SUM, found["Sum"]
    return Path(found["Dir"])


def _schema(definition: Path) -> dict[str, Any]:
    loaded = yaml.load(definition.read_text("utf-8"), yaml.CSafeLoader)  # the safe one, in C
    [version] = [one for one in loaded["spec"]["versions"] if one["name"] == "v1beta1"]
    closed: dict[str, Any] = _closed(version["schema"]["openAPIV3Schema"])
    return closed


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refuses unknown fields, as the API server does with strict validation."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: schema[key] for key in ("type", "enum", "required", "pattern", "minLength") if key in schema}
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if "properties" in schema:
        closed["properties"] = {name: _closed(one) for name, one in schema["properties"].items()}
        closed["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    return closed
