"""Writes YAML that readers of YAML 1.2 and of YAML 1.1 read as the same values."""

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

# Plain words that readers of YAML 1.1, such as the API server's, do not read as text.
_YAML11 = re.compile(
    r"(?i:y|yes|n|no|on|off|~|null|true|false|<<|=)|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[-+.]?[0-9].*|[-+]?\..*"
)


def dump(data: Any) -> str:
    """Return `data` as YAML. Words such as on and 12:30 are quoted; the order of keys is kept."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    yaml.allow_unicode = True
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


class _Representer(SafeRepresenter):
    """Writes strings so that every reader reads strings, and uses no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> ScalarNode:
        if "\n" in data:
            style: str | None = '"' if re.search(r"^\s|[^\S\n]\n|[^\S\n]$|[^\n\x20-\x7e]", data) else "|"
        elif _YAML11.fullmatch(data) or data == "" or re.search(r"[^\x20-\x7e]", data):
            style = '"'
        else:
            style = None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def number(self, data: float) -> ScalarNode:
        text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(data), repr(data))
        if "e" in text and "." not in text:
            text = text.replace("e", ".0e")  # YAML 1.1 requires the point
        return self.represent_scalar("tag:yaml.org,2002:float", text)


_Representer.add_representer(str, _Representer.text)
_Representer.add_representer(float, _Representer.number)
