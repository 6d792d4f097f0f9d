"""Programs of the operating system that tests run; missing ones are installed from Debian packages."""

import os
import shutil
import subprocess
import sys

PACKAGES = {
    "buildah": "buildah",
    "chromium": "chromium",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "ps": "procps",
    "runc": "runc",
}


class ProgramsMissingError(RuntimeError):
    """Programs of the operating system are missing, and cannot be installed."""


def require(*programs: str) -> None:
    """Check that programs are on PATH; as root on Debian, install the missing ones.

    Raises:
        ProgramsMissingError: some are still missing; the message has their names and the way to install them.
    """
    missing = [name for name in programs if shutil.which(name) is None]
    if not missing:
        return
    packages = sorted({PACKAGES[name] for name in missing})
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' '.join(packages)} (for {', '.join(missing)})", file=sys.stderr, flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # the package list may be old or missing; it is refreshed only if the first try fails
        for attempt in (command, ["apt-get", "update"], command):
            failed = subprocess.run(attempt, env=quiet, stdout=sys.stderr).returncode != 0
            if attempt is command and not failed:
                break
        missing = [name for name in missing if shutil.which(name) is None]
    if missing:
        raise ProgramsMissingError(f"missing: {', '.join(missing)}; install them, on Debian with: {' '.join(command)}")
