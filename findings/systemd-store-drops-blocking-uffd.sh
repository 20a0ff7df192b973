#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# systemd's file descriptor store keeps a userfaultfd only while it is O_NONBLOCK. systemd watches what
# it stores for EPOLLERR and EPOLLHUP, and throws away what has one: that is meant for connections
# that have ended. And poll() of a userfaultfd without O_NONBLOCK says POLLERR, always. So one that was
# made to block is accepted (sd_notify() succeeds) and is gone at once; the guest whose faults it tells
# of is lost at the service's next restart. O_NONBLOCK is of the open file, not of the descriptor:
# a process that shares it (the VMM) and clears the flag has the stored one thrown away as well, when
# the manager is next reloaded, which anybody's package does. FDPOLL=0 (systemd 246) beside FDSTORE=1
# prevents both.
#
# Seen on Linux 6.18.44 (systemd 252.39, Python 3.11), as root (a systemd of its own in namespaces, on
# an overlay of this host's files):
#   stored, O_NONBLOCK: 1 in the store
#   stored, blocking: 1 in the store
#   stored, blocking, FDPOLL=0: 2 in the store
#   the first one no longer O_NONBLOCK: 2 in the store
#   systemctl daemon-reload: 1 in the store
# Exit: 0 as seen; 1 where it behaves differently; 2 where it can't be tried.
set -u

# The first process of namespaces: becomes systemd.
if [ "${1-}" = --boot ]; then
	set -e
	root=$2/root
	mount -t overlay overlay -o "lowerdir=/,upperdir=$2/upper,workdir=$2/work" "$root"
	mount -t proc proc "$root/proc"
	mount -t sysfs sysfs "$root/sys"
	mount -t tmpfs tmpfs "$root/run"
	mount --rbind /dev "$root/dev"
	if mount -t tmpfs tmpfs "$root/sys/fs/cgroup" && mkdir "$root/sys/fs/cgroup/systemd" &&
		mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"; then
		:
	else
		umount "$root/sys/fs/cgroup"
		mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
	fi
	rm -rf "$root"/etc/systemd/system/*.wants
	mkdir -p "$root/etc/systemd/system" "$root/opt/store"
	cp "$2/service.py" "$root/opt/store"
	cat >"$root/etc/systemd/system/store.service" <<-END
	[Unit]
	DefaultDependencies=no
	[Service]
	Type=notify
	FileDescriptorStoreMax=16
	ExecStart=/usr/bin/python3 /opt/store/service.py
	END
	hostname store
	mount --make-rshared "$root"
	exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		chroot "$root" /lib/systemd/systemd --system --show-status=0 --unit=store.service
fi

[ -x /lib/systemd/systemd ] && [ -x /usr/bin/python3 ] && [ "$(id -u)" = 0 ] ||
	{ echo "can't be tried here: it takes root, systemd and python3"; exit 2; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/upper" "$dir/work" "$dir/root"
cat >"$dir/service.py" <<'END'
import array
import ctypes
import fcntl
import os
import socket
import subprocess
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NR = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
UFFDIO_API = 0xC018AA3F


def notify(text, *descriptors):
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect("\0" + address[1:] if address[0] == "@" else address)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        manager.sendmsg([text.encode()], rights if descriptors else [])


def say(what):
    # systemd takes messages in their order; this one it answers when it has taken them.
    read, write = os.pipe()
    notify("BARRIER=1", write)
    os.close(write)
    os.read(read, 1)
    # What it throws away it has to be told by epoll, after that.
    time.sleep(1)
    n = subprocess.run(["systemctl", "show", "-P", "NFileDescriptorStore", "store.service"],
                       stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    print("%s: %s in the store" % (what, n), file=out, flush=True)


def userfaultfd(flags):
    fd = libc.syscall(NR, os.O_CLOEXEC | flags)
    fcntl.ioctl(fd, UFFDIO_API, (ctypes.c_uint64 * 3)(0xAA, 0, 0))
    return fd


out = open("/opt/store/out", "w")
notify("READY=1")
first = userfaultfd(os.O_NONBLOCK)
notify("FDSTORE=1\nFDNAME=first", first)
say("stored, O_NONBLOCK")
notify("FDSTORE=1\nFDNAME=blocking", userfaultfd(0))
say("stored, blocking")
notify("FDSTORE=1\nFDNAME=unwatched\nFDPOLL=0", userfaultfd(0))
say("stored, blocking, FDPOLL=0")
fcntl.fcntl(first, fcntl.F_SETFL, 0)
say("the first one no longer O_NONBLOCK")
subprocess.run(["systemctl", "daemon-reload"], check=True)
say("systemctl daemon-reload")
print("end", file=out, flush=True)
time.sleep(3600)
END
unshare -m -p -u -i -C -n -f --kill-child "$0" --boot "$dir" >"$dir/log" 2>&1 &
namespace=$!
out=$dir/upper/opt/store/out
for _ in $(seq 300); do
	grep -q '^end' "$out" 2>/dev/null && break
	kill -0 "$namespace" 2>/dev/null || break
	sleep 0.1
done
kill -9 "$namespace" 2>/dev/null
wait "$namespace" 2>/dev/null
if ! grep -q '^end' "$out" 2>/dev/null; then
	echo "can't be tried here: $(tail -n 1 "$dir/log")"
	exit 2
fi
sed '/^end/d' "$out"
[ "$(sed '/^end/d; s/.*: \([0-9]*\) in the store/\1/' "$out" | tr '\n' ' ')" = "1 1 2 2 1 " ]
