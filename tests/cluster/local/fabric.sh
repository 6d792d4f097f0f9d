#!/usr/bin/env bash
# fabric.sh STATE GATEWAY [NODE:ADDRESS:POD_CIDR]... - process 1 of a cluster, in a network, mounts and process ids of its
# own: makes the network of every node and starts services. Its end is the end of everything in the cluster.
set -euo pipefail
here=$(dirname "$0") state=$1 gateway=$2
shift 2
read -r pid _ </proc/self/stat # /proc is still the machine's
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns /run/machine-proc
mount --bind /proc /run/machine-proc # nodes read their process id there
mount -t proc proc /proc

ip link set lo up
ip link add fabric type bridge
ip addr add "$gateway/24" dev fabric
ip link set fabric up
echo 1 >/proc/sys/net/ipv4/ip_forward
for one in "$@"; do
  IFS=: read -r node address pods <<<"$one"
  ip netns add "$node"
  ip link add "v$node" type veth peer name eth0 netns "$node"
  ip link set "v$node" master fabric up
  ip -n "$node" link set lo up
  ip -n "$node" addr add "$address/24" dev eth0
  ip -n "$node" link set eth0 up
  ip -n "$node" route add default via "$gateway"
  ip route add "$pods" via "$address"
done
for one in "$@"; do
  IFS=: read -r node _ _ <<<"$one"
  for other in "$@"; do
    IFS=: read -r name address pods <<<"$other"
    [ "$name" = "$node" ] || ip -n "$node" route add "$pods" via "$address"
  done
done

. "$here/serve.sh"
echo "$pid" >"$state/run/fabric.pid"
serve "$state/run/fabric"
