#!/usr/bin/env bash
# node.sh STATE NODE - process 1 of a node, which has a network, mounts, process ids, hostname and cgroups of its own:
# gives it the mounts of a machine and starts containerd, kubelet and kube-proxy. Its end is a power failure.
set -euo pipefail
here=$(dirname "$0") state=$1 node=$2
run=$state/run/$node disk=$state/nodes/$node
read -r pid _ </run/machine-proc/self/stat

mount -t proc proc /proc
hostname "$node"
mount --make-rshared / # kubelet and containerd hand mounts on to each other and to pods
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p "$disk"/{kubelet,containerd,log} /run/disk /run/state /run/upper /run/work /run/plain
mount --bind "$disk" /run/disk # a short path: names of sockets have 107 characters, options of a mount 4096
mount --bind "$disk/log" /var/log

# What programs write below /var/lib without being asked goes to memory; the state may lie there too.
mount --bind "$state" /run/state
mount -t overlay -o "lowerdir=/var/lib,upperdir=/run/upper,workdir=/run/work" overlay /var/lib
mount --bind /run/state "$state"

# Every hierarchy of control groups that there is, and no other: mounting a new v1 hierarchy would take its controller
# away from cgroup2, for the whole machine.
if [ "$(cut -d: -f1-2 /proc/self/cgroup)" = "0:" ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while IFS=: read -r _ controllers _; do
    at=/sys/fs/cgroup/${controllers#name=}
    case $controllers in
      "") mkdir /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified ;;
      name=*) mkdir "$at" && mount -t cgroup -o "none,$controllers" cgroup "$at" ;;
      *) mkdir "$at" && mount -t cgroup -o "$controllers" cgroup "$at" ;;
    esac
  done </proc/self/cgroup
fi

# kubelet sets these for the whole machine: it gets plain files to write to
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
  kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  [ -e "/proc/sys/$setting" ] || continue
  cat "/proc/sys/$setting" >"/run/plain/${setting//\//_}"
  mount --bind "/run/plain/${setting//\//_}" "/proc/sys/$setting"
done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables # a Service whose pod is on the client's own node needs it

. "$here/serve.sh"
launch "$run" containerd
until [ -S /run/containerd/containerd.sock ]; do sleep 0.05; done
launch "$run" kubelet
launch "$run" kube-proxy
echo "$pid" >"$state/run/$node.pid"
serve "$run"
