"""Container images without a registry and without a container engine: one layer, made of this machine's own files.

The layer holds the usual programs, this Python and the shared libraries that both load. It is put into a containerd
store once (the seed), which every node gets as hard links. What our images run is not in them: the virtual environment
and the sources are bound into every container, read-only, so that an edit is in the next pod and nothing is copied.
"""

import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.local import before
from tests.cluster.local.services import path as programs_path
from tests.tools import build, cache

VENV = "/opt/venv"
SOURCES = "/opt/finetune"
EARLIER = "/opt/before"  # sources of an earlier version
SERVING = "/opt/serving"  # the program `vllm`, a small server of LLaMAs
ROOTS = ("api", "operator", "trainer")


def _python(sources: str) -> dict[str, str]:
    return {
        "PATH": f"{VENV}/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": ":".join(f"{sources}/{root}" for root in ROOTS),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",
    }


PYTHON = _python(SOURCES)


@dataclass(frozen=True)
class Image:
    """A name for the one layer, with what containers of this name get."""

    name: str
    environ: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp"})
    command: tuple[str, ...] = ()


IMAGES = (
    Image("localhost/pause:1", command=("sleep", "infinity")),
    Image("localhost/light:1"),
    Image("localhost/finetune-operator:dev", PYTHON),
    Image("localhost/finetune-trainer:dev", PYTHON),
    Image("localhost/vllm:1", {"PATH": f"{SERVING}:{VENV}/bin:/usr/local/bin:/usr/bin:/bin"}),
    Image("localhost/finetune-operator:before", _python(EARLIER)),
    Image("localhost/finetune-trainer:before", _python(EARLIER)),
)

PROGRAMS = """
    awk basename bash base64 cat chmod cp cut date dd df dirname du env expr false find free grep gzip head hostname id
    kill ln ls md5sum mkdir mktemp mv nproc pgrep pkill printf ps pwd readlink rm rmdir sed seq sh sha256sum sleep sort
    stat stty tail tar tee test timeout touch tr true uname wc which xargs
"""
# loaded by name at run time, or by wheels, where no dependency of a program tells of them
LIBRARIES = "libgcc_s.so.1 libstdc++.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1"
FOLDERS = (
    "dev",
    "etc",
    "opt/serving",
    "opt/venv",
    *(f"opt/{sources}/{root}" for sources in ("finetune", "before") for root in ROOTS),
    "proc",
    "root",
    "run",
    "sys",
    "var/tmp",
)
NOT_IN_LAYER = re.compile(r"/(site-packages|test|tests|config-[^/]*|idlelib|turtledemo|tkinter|lib2to3|ensurepip)$")
FILES = {
    "etc/passwd": "root:x:0:0::/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\nuser:x:1000:1000::/tmp:/bin/bash\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\nuser:x:1000:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}

PLATFORM = {"architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, ""), "os": "linux"}
KEPT_SECONDS = 7 * 24 * 3600  # that nobody used a seed
MEDIA = "application/vnd.oci.image"


def seed() -> Path:
    """A containerd store that holds the images; made if the cache has none of the same files."""
    files = layer_files()
    key = hashlib.sha256(Path(__file__).read_bytes())
    for source in files:
        if source.suffix == ".pyc":
            continue  # comes and goes beside its source
        about = source.lstat()
        key.update(f"{source} {about.st_size} {about.st_mtime_ns}\n".encode())
    store = cache() / "images" / key.hexdigest()[:16]
    if not store.exists():
        print(f"making images from {len(files)} files of this machine", file=sys.stderr, flush=True)
        store.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store.parent) as partial:
            archive = Path(partial, "images.tar")
            _write_archive(archive, files)
            _import(archive, Path(partial, "store"))
            try:
                Path(partial, "store").rename(store)
            except OSError:  # another run was faster
                if not store.exists():
                    raise
    store.touch()
    for other in store.parent.iterdir():  # what nodes have of it are links, and stay
        if time.time() - other.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(other)
    return store


def plant(store: Path, disk: Path) -> None:
    """Give a node's disk the images: hard links, and copies of the data bases, which containerd writes to."""
    disk.mkdir(parents=True)
    subprocess.run(["cp", "--archive", "--link", store, disk / "containerd"], check=True)
    for database in store.rglob("*.db"):
        copy = disk / "containerd" / database.relative_to(store)
        copy.unlink()
        shutil.copy2(database, copy)


def runtime_spec(path: Path, checkout: Path) -> Path:
    """Write the specification that every container starts from: containerd's own, and our binds."""
    made = subprocess.run([build("ctr"), "oci", "spec"], capture_output=True, check=True)
    spec = json.loads(made.stdout)
    del spec["linux"]["cgroupsPath"]
    binds = {VENV: Path(sys.prefix), SERVING: Path(__file__).with_name("serving")}
    binds |= {f"{SOURCES}/{root}": checkout / root for root in ROOTS}
    if earlier := before.sources(checkout):
        binds |= {f"{EARLIER}/{root}": earlier / root for root in ROOTS}
    options = ["rbind", "ro", "nosuid", "nodev"]
    spec["mounts"] += [
        {"destination": inside, "type": "bind", "source": str(outside), "options": options}
        for inside, outside in binds.items()
    ]
    path.write_text(json.dumps(spec))
    return path


def compile_sources(checkout: Path) -> None:
    """Compile what containers import and cannot compile themselves: it is read-only there. Costs a minute once."""
    packages = Path(sysconfig.get_path("purelib"))
    stamp = Path(sys.prefix, ".compiled")
    if not stamp.exists() or stamp.stat().st_mtime < packages.stat().st_mtime:
        print(f"compiling {packages} (once, a minute)", file=sys.stderr, flush=True)
        _compile(packages)
        stamp.touch()
    _compile(*(checkout / root for root in ROOTS))
    if earlier := before.sources(checkout):
        _compile(*(earlier / root for root in ROOTS))


def _compile(*folders: Path) -> None:
    # wheels carry files for other versions of Python, which do not compile: neither fatal nor of interest
    subprocess.run([sys.executable, "-m", "compileall", "-qq", *folders], check=False)


def layer_files() -> list[Path]:
    """Every file of the layer, links before what they lead to."""
    programs = [shutil.which(name) for name in PROGRAMS.split()]
    interpreter = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    library = Path(sys.base_prefix, "lib")
    python = [interpreter, *library.glob("libpython3*.so*"), *tree(library / interpreter.name)]
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    libraries = [re.search(rf"^\s+{re.escape(name)} .*=> (.*)$", known, re.M) for name in LIBRARIES.split()]
    binaries = [Path(name) for name in programs if name] + [Path(match[1]) for match in libraries if match]
    binaries += [interpreter, *(path for path in python if ".so" in path.name)]
    return sorted({step for path in [*binaries, *_loaded(binaries), *python] for step in _steps(path)})


def tree(folder: Path) -> Iterator[Path]:
    """The files below a folder that belong into an image."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if not NOT_IN_LAYER.search(str(entry)):
                yield from tree(entry)
        elif entry.suffix != ".a" and not entry.name.startswith("_tkinter"):
            yield entry


def _loaded(binaries: list[Path]) -> list[Path]:
    """Shared libraries that the binaries load, by ldd."""
    told = subprocess.run(["ldd", *binaries], capture_output=True, text=True).stdout
    return [Path(name) for name in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", told, re.M)]


def _steps(path: Path) -> Iterator[Path]:
    """The path as the layer has it (no link among its folders), and where it leads if it is a link."""
    path = path.parent.resolve() / path.name
    yield path
    if path.is_symlink():
        yield from _steps(path.parent / path.readlink())


def _write_archive(archive: Path, files: list[Path]) -> None:
    """An OCI archive with every image of IMAGES over one layer of the files."""
    layer = archive.with_suffix(".layer")
    write_layer(layer, files)
    with layer.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    with tarfile.open(archive, "w") as tar:
        tar.add(layer, f"blobs/sha256/{digest}")
        described = {"mediaType": f"{MEDIA}.layer.v1.tar", "digest": f"sha256:{digest}", "size": layer.stat().st_size}
        manifests = []
        for image in IMAGES:
            environ = [f"{name}={value}" for name, value in image.environ.items()]
            config = {"Env": environ, "Cmd": list(image.command), "User": "1000:1000", "WorkingDir": "/"}
            rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
            of_config = _blob(tar, f"{MEDIA}.config.v1+json", {**PLATFORM, "config": config, "rootfs": rootfs})
            manifest = {"schemaVersion": 2, "mediaType": f"{MEDIA}.manifest.v1+json"}
            of_manifest = _blob(
                tar, f"{MEDIA}.manifest.v1+json", {**manifest, "config": of_config, "layers": [described]}
            )
            manifests.append(
                {**of_manifest, "annotations": {"io.containerd.image.name": image.name}, "platform": PLATFORM}
            )
        _put(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": manifests}).encode())
        _put(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    layer.unlink()


def write_layer(layer: Path, files: list[Path]) -> None:
    """A root file system of these files, and what every container needs beside them."""
    with tarfile.open(layer, "w") as tar:
        folders = {str(parent)[1:] for file in files for parent in file.parents if parent != Path("/")} | set(FOLDERS)
        for folder in sorted(folders | {str(parent) for one in folders for parent in Path(one).parents} - {"."}):
            _put_folder(tar, folder)
        for name in ("bin", "sbin", "lib", "lib64"):
            if name not in folders and Path("/", name).is_symlink():
                _put_link(tar, name, str(Path("/", name).readlink()))
        _put_folder(tar, "tmp", 0o1777)
        for name in ("python3", "python"):
            _put_link(tar, f"usr/local/bin/{name}", f"{sys.base_prefix}/bin/python3.{sys.version_info.minor}")
        for name, text in FILES.items():
            _put(tar, name, text.encode())
        for file in files:
            tar.add(file, str(file)[1:], recursive=False, filter=_owned_by_root)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode = stat.S_IMODE(entry.mode) | 0o444  # pods are not root
    return entry


def _put_folder(tar: tarfile.TarFile, name: str, mode: int = 0o755) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    tar.addfile(entry)


def _put_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))


def _blob(tar: tarfile.TarFile, media: str, content: dict[str, Any]) -> dict[str, Any]:
    """Add a JSON blob; returns its descriptor."""
    data = json.dumps(content).encode()
    digest = hashlib.sha256(data).hexdigest()
    _put(tar, f"blobs/sha256/{digest}", data)
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}


IMPORT = """
mount -t tmpfs tmpfs /run
containerd --config "$1" >/run/log 2>&1 &
until [ -S /run/containerd/containerd.sock ]; do
  kill -0 $! 2>/dev/null || { cat /run/log >&2; exit 1; }
  sleep 0.05
done
ctr --namespace k8s.io images import --local "$2" || { cat /run/log >&2; exit 1; }
kill $! && wait $!
"""


def _import(archive: Path, store: Path) -> None:
    """Unpack the archive's images into a new containerd store."""
    config = archive.with_suffix(".toml")
    config.write_text(
        f"""version = 3
root = '{store}'
state = '/run/containerd'
imports = []
disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.runtime', 'io.containerd.cri.v1.images',
  'io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt']
"""
    )
    store.mkdir()
    private = ["unshare", "--mount", "--propagation", "private"]
    command = [*private, "bash", "-c", IMPORT, "import", str(config), str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": programs_path()})
    if done.returncode != 0:
        raise RuntimeError(f"the images could not be imported: {done.stderr[-3000:]}")
