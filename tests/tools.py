"""Programs that tests run beside us (etcd, kube-apiserver, versitygw, registry), built once from Go modules into a
cache.

The module of a program is `tests/tools/<module>/go.mod`; its cache folder carries the hash of go.mod and go.sum: a
changed version is a new folder. The cache lies outside the tree: FINETUNE_CACHE, or ~/.cache/finetune-operator.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

MODULES = Path(__file__).parent / "tools"


@dataclass(frozen=True)
class Program:
    """Where a program comes from: its folder below tests/tools, its Go package, linker flags and build tags.

    Attributes:
        cgo: whether parts of it are written in C, so that the build needs a C compiler.
    """

    module: str
    package: str
    ldflags: str = ""
    tags: str = ""
    cgo: bool = False


KUBE_VERSION = "v1.36.3"  # the binaries say v0.0.0 otherwise
_STAMP = "k8s.io/component-base/version"
_KUBE_LDFLAGS = f"-X {_STAMP}.gitVersion={KUBE_VERSION} -X {_STAMP}.gitMajor=1 -X {_STAMP}.gitMinor=36"

_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_CONTAINERD_TAGS = "no_btrfs no_devmapper no_zfs"  # snapshotters nobody uses here, and the headers they want
_CNI = "github.com/containernetworking/plugins/plugins"

PROGRAMS = {
    "etcd": Program("etcd", "go.etcd.io/etcd/server/v3"),
    **{
        name: Program("kube", f"k8s.io/kubernetes/cmd/{name}", _KUBE_LDFLAGS)
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    },
    **{
        name: Program("containerd", f"{_CONTAINERD}/{name}", tags=_CONTAINERD_TAGS)
        for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    },
    "bridge": Program("cni", f"{_CNI}/main/bridge"),
    "loopback": Program("cni", f"{_CNI}/main/loopback"),
    "host-local": Program("cni", f"{_CNI}/ipam/host-local"),
    "portmap": Program("cni", f"{_CNI}/meta/portmap"),
    "coredns": Program("misc", "./dns"),
    "helm": Program("misc", "helm.sh/helm/v4/cmd/helm", "-X helm.sh/helm/v4/internal/version.version=v4.3.1"),
    "helm-unittest": Program("helm-unittest", "github.com/helm-unittest/helm-unittest/cmd/helm-unittest"),
    "kubeconform": Program("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform"),
    "registry": Program("registry", "github.com/distribution/distribution/v3/cmd/registry"),
    "vale": Program("vale", "github.com/vale-cli/vale/v3/cmd/vale", "-X main.version=v3.22.0", cgo=True),
    "versitygw": Program("versitygw", "github.com/versity/versitygw/cmd/versitygw"),
}


class GoMissingError(RuntimeError):
    """There is no Go toolchain, or no C compiler that the program needs, to build it with."""


def cache() -> Path:
    """Folder of everything built once and kept between checkouts."""
    given = os.environ.get("FINETUNE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "finetune-operator"


def tool(name: str) -> Path:
    """Path of a program, built if it is not in the cache; a test without Go skips, but never where CI=true."""
    try:
        return build(name)
    except GoMissingError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def build(name: str) -> Path:
    """Path of a program, built if it is not in the cache.

    Raises:
        GoMissingError: it is not in the cache and there is no `go`, or no C compiler that it needs, on PATH.
        subprocess.CalledProcessError: the build failed; its output is on stderr.
    """
    program = PROGRAMS[name]
    module = MODULES / program.module
    sums = hashlib.sha256((module / "go.mod").read_bytes() + (module / "go.sum").read_bytes()).hexdigest()
    folder = cache() / "tools" / f"{program.module}-{sums[:16]}"
    binary = folder / name
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        raise GoMissingError(f"{name} is not built yet and there is no `go` on PATH: install Go 1.26 or newer")
    if program.cgo and not any(map(shutil.which, ("gcc", "cc", "clang"))):
        raise GoMissingError(f"{name} is not built yet and there is no C compiler on PATH: install gcc")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once: the second waits and finds the first one's binary
        if not binary.exists():
            _go_build(go, program, module, binary)
    return binary


def _go_build(go: str, program: Program, module: Path, binary: Path) -> None:
    print(
        f"building {binary.name} into {binary.parent} (once; minutes on a cold Go cache)", file=sys.stderr, flush=True
    )
    partial = binary.with_name(f".{binary.name}.partial")  # renamed when whole: an interrupted build leaves no program
    command = [go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false"]
    command += ["-tags", program.tags, "-ldflags", f"-s -w {program.ldflags}", "-o", str(partial), program.package]
    subprocess.run(
        command,
        cwd=module,
        env={**os.environ, "CGO_ENABLED": "1" if program.cgo else "0"},
        check=True,
        stdout=sys.stderr,
    )
    partial.rename(binary)


def main() -> None:
    """`python tests/tools.py [name ...]`: build the programs named, or all of them."""
    for name in sys.argv[1:] or sorted(PROGRAMS):
        print(build(name))


if __name__ == "__main__":
    main()
