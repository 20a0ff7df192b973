#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A TCP socket that is paced by SO_MAX_PACING_RATE still sends tens of KiB at a time where the round
# trip is short, however low the rate, and however small the writes: what waits in it becomes one
# packet for segmentation offload, which takes more than a millisecond's worth where the round trip
# is below some 0.5 ms (net.ipv4.tcp_tso_rtt_log, Linux 5.18). At 4 MB/s 28,960 bytes are 7 ms of a
# link of that rate, which others wait for. MSG_EOR, meant for records, is what bounds it: no other data is put into a packet
# behind it.
#
# Seen on Linux 6.18.44 (Python 3.11), as root (a network namespace with a veth pair):
#   paced at 4000000 bytes/s: 4.0 MB/s, packets of up to 28960 (36200) bytes, most in some of 18824
#   the same with MSG_EOR each 4096 bytes: 3.9 MB/s, packets of up to 4096 bytes, most ... of 4096
# Exit: 0 as seen; 1 where the kernel behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.py" <<'EOF'
import collections
import os
import socket
import struct
import subprocess
import sys
import threading
import time

RATE = 4000000
PIECE = 4096
SO_MAX_PACING_RATE = 47


def run(*command):
    subprocess.run(command, check=True)


def packets(port, flags):
    """What leaves by the veth in a second: bytes a packet -> how many bytes in such."""
    sizes = collections.Counter()
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.bind(("near", 0))
    tap.settimeout(0.2)
    sender = socket.create_connection(("10.0.0.2", port))
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sender.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("Q", RATE))
    until = time.monotonic() + 2

    def send():
        while time.monotonic() < until:
            sender.send(bytes(PIECE), flags)
        sender.close()

    threading.Thread(target=send).start()
    begin = time.monotonic() + 0.5
    while time.monotonic() < until:
        try:
            data = tap.recv(1 << 17)
        except socket.timeout:
            continue
        # Ethernet 14; IPv4's and TCP's header lengths are in them.
        ip = (data[14] & 15) * 4
        tcp = (data[14 + ip + 12] >> 4) * 4
        payload = len(data) - 14 - ip - tcp
        to = struct.unpack(">H", data[14 + ip + 2:][:2])[0]
        if time.monotonic() > begin and payload > 0 and to == port:
            sizes[payload] += payload
    tap.close()
    most = sizes.most_common(1)[0][0]
    return "%.1f MB/s, packets of up to %d bytes, most bytes in packets of %d" % (
        sum(sizes.values()) / 1.5e6, max(sizes), most), max(sizes)


def cannot(kind, why, trace):
    print("can't be tried here: %s: %s" % (kind.__name__, why))
    os._exit(2)


# What goes wrong in what follows is not what it is about.
sys.excepthook = cannot
# The other end in a namespace of its own, or the kernel would short-cut it by lo.
far = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
while os.readlink("/proc/%d/ns/net" % far.pid) == os.readlink("/proc/self/ns/net"):
    time.sleep(0.01)
run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(far.pid))
run("ip", "address", "add", "10.0.0.1/24", "dev", "near")
run("ip", "link", "set", "near", "up")
enter = ["nsenter", "--net=/proc/%d/ns/net" % far.pid]
run(*enter, "ip", "address", "add", "10.0.0.2/24", "dev", "far")
run(*enter, "ip", "link", "set", "far", "up")
sink = subprocess.Popen(enter + [sys.executable, "-c", """
import socket, threading
s = socket.create_server(("10.0.0.2", 7000))
print("ready", flush=True)
def drain(c):
    while c.recv(1 << 16):
        pass
for _ in range(2):
    threading.Thread(target=drain, args=(s.accept()[0],)).start()
"""], stdout=subprocess.PIPE)
sink.stdout.readline()
plain, plain_max = packets(7000, 0)
print("paced at %d bytes/s: %s" % (RATE, plain))
cut, cut_max = packets(7000, socket.MSG_EOR)
print("the same with MSG_EOR each %d bytes: %s" % (PIECE, cut))
far.stdin.close()
sys.exit(0 if plain_max > 4 * PIECE and cut_max <= PIECE else 1)
EOF
for tool in python3 unshare nsenter ip; do
	command -v $tool >/dev/null || { echo "no $tool here"; exit 2; }
done
unshare --net true 2>/dev/null || { echo "no network namespaces here (root?)"; exit 2; }
timeout 30 unshare --net python3 "$dir/t.py" && rc=0 || rc=$?
[ $rc != 124 ] || { echo "not done in 30 s"; rc=2; }
exit $rc
