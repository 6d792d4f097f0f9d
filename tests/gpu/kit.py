"""Collect what the GPU machine lacks, prove it on a CPU, and check that it is small enough to travel.

`python -m tests.gpu.kit` (`make gpu-kit`) writes below build/gpu-kit:
    wheels/     every package of requirements/trainer.txt that the machine lacks, for its Python
    lowest/     a virtual environment of requirements/lowest.txt, the oldest versions we support: tests/unit pass in it
    machine/    a virtual environment that stands for the machine, for `tests/gpu/run --cpu-rehearsal`
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from tests.gpu import machine

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "build" / "gpu-kit"
WHEELS = KIT / "wheels"
LOWEST = ROOT / "requirements" / "lowest.txt"
IMAGE = ROOT / "requirements" / "trainer.txt"
BITSANDBYTES_KEPT = (f"libbitsandbytes_cuda{machine.CUDA}.so", "libbitsandbytes_cpu.so")
MINOR = "{}.{}".format(*machine.PYTHON)
INSTALLED = ".installed"  # within a virtual environment: the hash of what was asked for


def main() -> int:
    """Make the kit; exit 1 with a sentence if it is too large or fails its proof."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-proof", action="store_true", help="do not run tests/unit on the lowest versions")
    options = parser.parse_args()
    python = interpreter()
    collect()
    environment(KIT / "machine", python, [*present(LOWEST), "pip"])
    size = archive_bytes()
    print(f"archive: {size / 2**20:.1f} MiB of sources and wheels, {machine.ARCHIVE_BYTES >> 20} MiB may travel")
    if size > machine.ARCHIVE_BYTES:
        print(f"the archive is too large: leave out wheels of {WHEELS}", file=sys.stderr)
        return 1
    if options.no_proof:
        return 0
    lowest = environment(KIT / "lowest", python, pinned(LOWEST).values())
    add_sources(lowest)
    command = [lowest / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit"]
    print(f"proof: tests/unit on Python {MINOR} and {LOWEST.relative_to(ROOT)}")
    return subprocess.run(command, cwd=ROOT, check=False).returncode


# ---------------------------------------------------------------- what is asked for


def pinned(path: Path) -> dict[str, str]:
    """Return the requirements of a lock file by normalised name, each with its hashes on one line."""
    text = path.read_text().replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return {
        normalised(re.split(r"[=\[ ]", line, maxsplit=1)[0]): re.sub(r"\s+", " ", line)
        for line in lines
        if line and not line.startswith("#")
    }


def normalised(name: str) -> str:
    """Return a package's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def present(path: Path) -> list[str]:
    """Return the requirements of a lock file that the machine already has."""
    return [line for name, line in pinned(path).items() if name in machine.PRESENT - machine.CARRIED]


def lacking() -> list[str]:
    """Return the requirements of the trainer's image that the machine lacks."""
    there = {"python_version": MINOR, "python_full_version": f"{MINOR}.0", "sys_platform": "linux"}
    there |= {"platform_system": "Linux", "platform_machine": machine.PLATFORM}
    carried = {name: line for name, line in pinned(IMAGE).items() if name not in machine.PRESENT - machine.CARRIED}
    marks = {name: Requirement(line.partition(" --hash")[0]).marker for name, line in carried.items()}
    return [line for name, line in carried.items() if (mark := marks[name]) is None or mark.evaluate(there)]


# ---------------------------------------------------------------- wheels


def collect() -> None:
    """Download the lacking wheels, build those that exist as sources only, and trim bitsandbytes."""
    wanted = lacking()
    mark = hashlib.sha256("\n".join([*wanted, *BITSANDBYTES_KEPT]).encode()).hexdigest()
    if (WHEELS / INSTALLED).exists() and (WHEELS / INSTALLED).read_text() == mark:
        return
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    print(f"collecting {len(wanted)} packages into {WHEELS.relative_to(ROOT)}", flush=True)
    for line in wanted:
        download(line)
    for wheel in WHEELS.glob("bitsandbytes-*.whl"):
        trim(wheel)
    (WHEELS / INSTALLED).write_text(mark)


def download(requirement: str) -> None:
    """Download one wheel by its hash; build it where there are only sources (pure Python)."""
    listed = KIT / "one.txt"
    listed.write_text(requirement.partition(";")[0] + " " + " ".join(re.findall(r"--hash=\S+", requirement)) + "\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    here = ["--require-hashes", "--no-deps", "-r", str(listed)]
    there = ["--only-binary=:all:", "--implementation=cp", f"--python-version={MINOR}"]
    there += [f"--platform={tag}" for tag in platforms()]
    fetched = subprocess.run(
        [*pip, "download", *here, *there, "-d", str(WHEELS)], capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        built = [*pip, "wheel", "--no-build-isolation", *here, "-w", str(WHEELS)]
        subprocess.run(built, check=True)
    listed.unlink()


def platforms() -> list[str]:
    """Return the tags of wheels that run on the machine, pip's `--platform`."""
    newer = [f"manylinux_2_{minor}_{machine.PLATFORM}" for minor in range(machine.GLIBC[1], 4, -1)]
    return [*newer, *(f"manylinux{name}_{machine.PLATFORM}" for name in ("2014", "2010", "1"))]


def trim(wheel: Path) -> None:
    """Rewrite a wheel of bitsandbytes with the libraries of the machine's CUDA version and of the CPU alone."""
    slim = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
        [record] = [name for name in source.namelist() if name.endswith(".dist-info/RECORD")]
        lines = []
        for entry in source.infolist():
            name = Path(entry.filename).name
            if entry.filename == record or (name.startswith("lib") and name not in BITSANDBYTES_KEPT):
                continue
            content = source.read(entry)
            digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{entry.filename},sha256={digest},{len(content)}\n")
            made.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
        made.writestr(record, "".join(lines) + f"{record},,\n")
    if not all(any(kept in line for line in lines) for kept in BITSANDBYTES_KEPT):
        raise SystemExit(f"{wheel.name} has no library for CUDA {machine.CUDA}: see its folder bitsandbytes")
    slim.replace(wheel)


def archive_bytes() -> int:
    """Return the size of what travels: files that git tracks or does not ignore, and the wheels."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return sum(path.stat().st_size for path in [*paths, *WHEELS.glob("*.whl")])


# ---------------------------------------------------------------- virtual environments


def interpreter() -> str:
    """Return a Python of the machine's version; exit with a sentence if there is none."""
    kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{MINOR}.*/bin/python"))
    for candidate in (f"python{MINOR}", *map(str, kept)):
        found = shutil.which(candidate)
        if found and subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode == 0:
            return found
    raise SystemExit(f"Python {MINOR} is not installed: the GPU machine has it, and the proof needs it")


def environment(folder: Path, python: str, requirements: Iterable[str]) -> Path:
    """Return a virtual environment with exactly these requirements."""
    wanted = "\n".join([python, *requirements])
    mark = hashlib.sha256(wanted.encode()).hexdigest()
    if (folder / INSTALLED).exists() and (folder / INSTALLED).read_text() == mark:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {folder.relative_to(ROOT)}", flush=True)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--seed", "--python", python, str(folder)], check=True)
    listed = folder / "requirements.txt"
    listed.write_text("".join(f"{line}\n" for line in wanted.splitlines()[1:] if line != "pip"))
    install = [
        *uv,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--python",
        str(folder / "bin/python"),
    ]
    subprocess.run([*install, "-r", str(listed)], check=True)
    (folder / INSTALLED).write_text(mark)
    return folder


def add_sources(folder: Path) -> None:
    """Make the packages of this checkout importable from a virtual environment."""
    [site] = folder.glob("lib/python*/site-packages")
    (site / "finetune.pth").write_text("".join(f"{ROOT / name}\n" for name in ("api", "operator", "trainer", ".")))


if __name__ == "__main__":
    sys.exit(main())
