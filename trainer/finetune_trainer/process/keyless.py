"""The environment of a process that needs no key: an allow-list, because nobody knows the names of all credentials."""

from collections.abc import Mapping

INHERITED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
HUB = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE")
PREFIXES = ("LC_", "PYTHON", "XDG_", "OMP_", "KMP_", "MKL_", "OPENBLAS_")


def keyless_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that hold no credential."""
    named = {*INHERITED, *NETWORK, *(name.lower() for name in NETWORK), *HUB}
    return {name: value for name, value in environ.items() if name in named or name.startswith(PREFIXES)}
