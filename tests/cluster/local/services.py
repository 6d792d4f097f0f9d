"""Every process of a cluster: its command, and the configuration files that it reads."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster.local import cgroups
from tests.cluster.local.network import (
    API_PORT,
    DNS_DOMAIN,
    GATEWAY,
    NODES,
    POD_CIDR,
    S3_PORT,
    SERVICE_CIDR,
    Node,
)
from tests.cluster.local.state import FABRIC, State
from tests.tools import build

HERE = Path(__file__).parent
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Command = list[str | Path]

OF_FABRIC = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "coredns", "s3")


def fabric(state: State, s3_keys: tuple[str, str], node_grace: int, toleration: int) -> dict[str, Command]:
    """Services of the fabric by name.

    Args:
        node_grace: seconds of silence after which a node is not ready.
        toleration: seconds that a pod stays on such a node.
    """
    return {
        "etcd": _etcd(state),
        "kube-apiserver": _apiserver(state, toleration),
        "kube-controller-manager": controller_manager(state, node_grace),
        "kube-scheduler": [
            build("kube-scheduler"),
            f"--kubeconfig={state.identity / 'kube-scheduler.kubeconfig'}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ],
        "coredns": [build("coredns"), "-conf", _corefile(state)],
        "s3": _s3(state, *s3_keys),
    }


def _etcd(state: State) -> Command:
    return [
        build("etcd"),
        f"--data-dir={state.folder / 'etcd'}",
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--quota-backend-bytes=2147483648",
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=1000",
    ]


def _apiserver(state: State, toleration: int) -> Command:
    identity = state.identity
    pair = (identity / "apiserver.crt", identity / "apiserver.key")
    return [
        build("kube-apiserver"),
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        f"--advertise-address={GATEWAY}",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={pair[0]}",
        f"--tls-private-key-file={pair[1]}",
        f"--token-auth-file={identity / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={identity / 'tokens.key'}",
        f"--service-account-signing-key-file={identity / 'tokens.key'}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--kubelet-client-certificate={pair[0]}",
        f"--kubelet-client-key={pair[1]}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--default-not-ready-toleration-seconds={toleration}",
        f"--default-unreachable-toleration-seconds={toleration}",
    ]


def controller_manager(state: State, node_grace: int) -> Command:
    identity = state.identity
    return [
        build("kube-controller-manager"),
        f"--kubeconfig={identity / 'kube-controller-manager.kubeconfig'}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={identity / 'tokens.key'}",
        f"--root-ca-file={identity / 'ca.crt'}",
        "--bind-address=127.0.0.1",
        f"--flex-volume-plugin-dir={state.folder / 'plugins'}",  # made there; by default, on the machine
        "--node-monitor-period=2s",
        f"--node-monitor-grace-period={node_grace}s",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]


def _corefile(state: State) -> Path:
    # Two blocks: in one, `template` answers before `kubernetes`. Names of outside fail at once, not after a timeout.
    path = state.folder / "Corefile"
    path.write_text(
        f"""{DNS_DOMAIN}:53 in-addr.arpa:53 {{
  bind {GATEWAY}
  errors
  kubernetes {DNS_DOMAIN} in-addr.arpa {{
    kubeconfig {state.identity / "coredns.kubeconfig"}
    pods insecure
    ttl 0
  }}
}}
.:53 {{
  bind {GATEWAY}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
"""
    )
    return path


def _s3(state: State, access_key: str, secret_key: str) -> Command:
    buckets, sidecar, users = state.s3 / "buckets", state.s3 / "sidecar", state.s3 / "users"
    for made in (buckets, sidecar, users):
        made.mkdir(parents=True)
    environ = [f"ROOT_ACCESS_KEY={access_key}", f"ROOT_SECRET_KEY={secret_key}"]
    served = ["--port", f":{S3_PORT}", "--health", "/health", "--iam-dir", users]
    served += ["posix", "--sidecar", sidecar, buckets]
    return ["env", *environ, build("versitygw"), *served]


def boot(state: State, node: Node, groups: list[Path]) -> str:
    """Script of a node as a service of the fabric: joins its cgroups, then namespaces of its own, then node.sh."""
    leaves = [group / cgroups.LEAF for group in groups if (group / cgroups.LEAF).exists()]
    init = shlex.join(["bash", str(HERE / "node.sh"), str(state.folder), node.name])
    own = "--mount --pid --uts --propagation private --fork --kill-child=SIGKILL"
    entered = f"{_join(leaves)}exec ip netns exec {node.name} unshare {own} {init}"
    return f"{_join(groups)}exec unshare --cgroup bash -c {shlex.quote(entered)}"


def _join(groups: list[Path]) -> str:
    return "".join(f"echo $$ >{shlex.quote(str(group / 'cgroup.procs'))}\n" for group in groups)


def node(state: State, node: Node) -> dict[str, Command]:
    """Services of a node by name; node.sh starts them in this order."""
    folder = state.run(node.name)
    cni = folder / "cni"
    cni.mkdir()
    (cni / "10-bridge.conflist").write_text(json.dumps(_cni(node)))
    (folder / "containerd.toml").write_text(_containerd(cni, state.container))
    (folder / "kubelet.yaml").write_text(json.dumps(_kubelet(state)))
    (folder / "kube-proxy.yaml").write_text(json.dumps(_kube_proxy(state, node)))
    return {
        "containerd": [build("containerd"), "--config", folder / "containerd.toml"],
        "kubelet": [
            build("kubelet"),
            f"--config={folder / 'kubelet.yaml'}",
            f"--kubeconfig={state.identity / f'{node.name}.kubeconfig'}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
            "--root-dir=/run/disk/kubelet",
            "--cert-dir=/run/disk/kubelet/pki",
            f"--node-labels=topology.kubernetes.io/zone=z{node.number}",
        ],
        "kube-proxy": [build("kube-proxy"), "--config", folder / "kube-proxy.yaml"],
    }


def _cni(node: Node) -> Mapping[str, Any]:
    # addresses of pods in memory: after a power failure they are free again
    addresses = {"type": "host-local", "ranges": [[{"subnet": node.pod_cidr}]], "dataDir": "/run/cni/networks"}
    bridge = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "ipMasq": False, "hairpinMode": True}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [{**bridge, "ipam": addresses}]}


def _containerd(cni: Path, runtime_spec: Path) -> str:
    return f"""version = 3
root = '/run/disk/containerd'
imports = []
disabled_plugins = [
  'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.nri.v1.nri',
  'io.containerd.internal.v1.opt', 'io.containerd.tracing.processor.v1.otlp',
]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = 'localhost/pause:1'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true  # CAP_SYS_RESOURCE may be missing
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{build("bridge").parent}']
    conf_dir = '{cni}'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    base_runtime_spec = '{runtime_spec}'
[plugins.'io.containerd.metadata.v1.bolt']
  no_sync = true
"""


def _kubelet(state: State) -> Mapping[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(state.identity / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [GATEWAY],
        "clusterDomain": DNS_DOMAIN,
        "resolvConf": "",
        "failSwapOn": False,
        "enforceNodeAllocatable": ["pods"],
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 8,  # renewed every quarter of it: six times within the shortest grace
        "serializeImagePulls": False,
        "evictionHard": {
            "memory.available": "200Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,  # an image that is collected cannot be pulled again
        "volumePluginDir": "/run/volume-plugins",
        "crashLoopBackOff": {"maxContainerRestartPeriod": "10s"},
    }


def _kube_proxy(state: State, node: Node) -> Mapping[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": node.name,
        "clientConnection": {"kubeconfig": str(state.identity / "kube-proxy.kubeconfig")},
        # 0: leave them alone; they belong to the machine
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "metricsBindAddress": "127.0.0.1:10249",
    }


def forward(pid: int, sockets: Mapping[int, int]) -> Command:
    """The forwarder: in the fabric's network and process ids, with sockets (by descriptor) that listen outside.

    Args:
        pid: the fabric's process 1.
        sockets: port in the fabric by descriptor.
    """
    into = ["nsenter", "--target", str(pid), "--net", "--pid", "--mount"]
    return [*into, sys.executable, HERE / "forward.py", *(f"{fd}:{port}" for fd, port in sockets.items())]


def write(state: State, place: str, services: Mapping[str, Command | str]) -> None:
    """Make each service a file in the place's folder, with a log of its own."""
    for name, command in services.items():
        log = state.logs / (f"{name}.log" if place == FABRIC else f"{place}.{name}.log")
        text = command if isinstance(command, str) else "exec " + shlex.join(str(part) for part in command)
        (state.run(place) / name).write_text(f"exec >>{shlex.quote(str(log))} 2>&1\n{text}\n")


def path() -> str:
    """PATH of every process: ours, then the system's; not the caller's."""
    return f"{build('containerd').parent}:{SYSTEM_PATH}"


def fabric_command(state: State) -> Command:
    nodes = [f"{node.name}:{node.address}:{node.pod_cidr}" for node in NODES]
    own = ["--net", "--mount", "--pid", "--propagation", "private", "--fork", "--kill-child=SIGKILL"]
    return ["unshare", *own, "bash", HERE / "fabric.sh", state.folder, GATEWAY, *nodes]
