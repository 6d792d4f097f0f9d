"""sbom.cdx.json: the installed packages as a CycloneDX 1.6 bill of materials (https://cyclonedx.org/docs/1.6/json/).

It is written here, because the library for it would bring an XML parser and four further packages for a flat list.
"""

import re
import uuid
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from typing import Any

SPEC_VERSION = "1.6"


def bill_of_materials(name: str, created: str) -> dict[str, Any]:
    """Return the bill of the packages of this Python.

    Args:
        name: of the model that they made.
        created: ISO 8601.
    """
    components = sorted(_components(distributions()), key=lambda one: str(one["bom-ref"]))
    identity = "\n".join([name, created, *(str(one["bom-ref"]) for one in components)])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "component": {"type": "machine-learning-model", "bom-ref": "model", "name": name},
        },
        "components": components,
        "dependencies": [{"ref": "model", "dependsOn": [one["bom-ref"] for one in components]}],
    }


def _components(found: Iterable[Distribution]) -> Iterable[dict[str, Any]]:
    seen = set()
    for one in found:
        try:
            about = one.metadata
            name, version = about["Name"], about["Version"]
        except (OSError, ValueError, TypeError):  # its METADATA is missing or is no text
            continue
        if not name or not version:  # a folder that an interrupted removal has left
            continue
        address = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
        if address in seen:
            continue
        seen.add(address)
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": address,
            "name": name,
            "version": version,
            "purl": address,
        }
        if "License-Expression" in about:
            component["licenses"] = [{"expression": about["License-Expression"]}]
        yield component
