"""The sources of an earlier version, out of git: what a cluster runs as the operator that was there before ours."""

import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.tools import cache

COMMIT = "87ae106fe7b7343599c0650b76fb328f9a07415a"  # the last whose readers refuse fields that they do not know
PARTS = ("api", "operator", "trainer", "charts", "manifests")


def sources(checkout: Path) -> Path | None:
    """Folder of the earlier sources; None where the checkout has no history that goes back so far."""
    folder = cache() / "sources" / COMMIT[:16]
    if folder.exists():
        return folder
    command = ["git", "-C", str(checkout), "-c", f"safe.directory={checkout}", "archive", COMMIT, *PARTS]
    done = subprocess.run(command, capture_output=True) if shutil.which("git") else None
    if done is None or done.returncode != 0:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        unpacked = Path(partial, "sources")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(unpacked, filter="data")
        try:
            unpacked.rename(folder)
        except OSError:  # another run was faster
            if not folder.exists():
                raise
    return folder
