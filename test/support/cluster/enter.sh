#!/bin/sh
# enter.sh COMMAND...: runs a command where cluster daemons can work as root without touching the machine: in mount, network,
# process, IPC, host name and cgroup namespaces of its own, with an empty /run, a fresh loopback, and a directory of its own
# named by $KATA_CLUSTER_DIR. When the command ends, or this script or its caller is killed, everything inside ends with it;
# directory and cgroups are removed. What a killed script could not remove, the next one does.
set -u

# Inside, as process 1: a cgroup of its own in every hierarchy, then a cgroup namespace that takes these for the roots.
if [ "${1-}" = --cgroups ]; then
  shift
  for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
    own=$hierarchy/$KATA_CLUSTER_GROUP
    [ -d "$own" ] || continue
    # A new cpuset is empty, and nothing can run in it.
    for file in cpuset.cpus cpuset.mems; do
      [ ! -e "$own/$file" ] || [ -e "$own/cgroup.controllers" ] || cat "$hierarchy/$file" >"$own/$file"
    done
    echo 1 >"$own/cgroup.procs" || exit 125
  done
  exec unshare --cgroup sh "$0" --inside "$@"
fi

if [ "${1-}" = --inside ]; then
  shift
  set -e
  # The mounts of /sys/fs/cgroup anew: they show the namespace's part of each hierarchy.
  awk '$5 ~ "^/sys/fs/cgroup" && $(NF - 2) ~ "^cgroup" { print $5, $(NF - 2), $NF }' /proc/self/mountinfo \
    >"$KATA_CLUSTER_DIR/mounts"
  while read -r point type options; do
    umount "$point"
    mount -t "$type" -o "$options" none "$point"
  done <"$KATA_CLUSTER_DIR/mounts"
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    # In the second version only a cgroup without processes can have children with limits.
    mkdir /sys/fs/cgroup/init
    echo 1 >/sys/fs/cgroup/init/cgroup.procs
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
      echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
    done
  fi
  mount -t tmpfs -o mode=0755 none /run
  mkdir -p /run/lock /run/netns /var/lib/cni
  # ip-netns(8) would make it a mount at its first use, and leave it.
  mount --bind /run/netns /run/netns
  mount -t tmpfs -o mode=0755 none /var/lib/cni
  # No name server answers here, and looking for one would take time.
  echo 'nameserver 127.0.0.1' >/run/resolv.conf
  mount --bind /run/resolv.conf /etc/resolv.conf
  # Mount propagation between host and container needs shared mounts, as systemd makes them.
  mount --make-rshared /
  hostname cluster
  ip link set lo up
  echo 1 >/proc/sys/net/ipv4/ip_forward
  echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
  set +e
  # Process 1 stays this shell: it reaps the orphans, shims for the most part.
  "$@" <&0 &
  wait $!
  exit
fi

# remove NAME: the cgroups and the directory of one instance, once its processes are gone.
remove() {
  for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -d "$hierarchy/$1" ] || continue
    # A cgroup stays busy for a moment after its last process.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      find "$hierarchy/$1" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.1
    done
  done
  rm -rf "${TMPDIR:-/tmp}/$1"
}

for stale in "${TMPDIR:-/tmp}"/kata-cluster-*; do
  [ -d "/proc/${stale##*-}" ] || [ ! -d "$stale" ] || remove "${stale##*/}"
done

KATA_CLUSTER_GROUP=kata-cluster-$$
KATA_CLUSTER_DIR=${TMPDIR:-/tmp}/$KATA_CLUSTER_GROUP
export KATA_CLUSTER_GROUP KATA_CLUSTER_DIR
mkdir -m 0755 "$KATA_CLUSTER_DIR" || exit 125
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ -e "$hierarchy/cgroup.procs" ] && mkdir "$hierarchy/$KATA_CLUSTER_GROUP"
done 2>/dev/null
trap 'remove "$KATA_CLUSTER_GROUP"' EXIT
trap 'kill -KILL "$inner"; wait "$inner"; exit 130' INT TERM HUP
setpriv --pdeathsig KILL unshare --mount --net --pid --ipc --uts --fork --kill-child --mount-proc --propagation private \
  sh "$0" --cgroups "$@" <&0 &
inner=$!
wait "$inner"
