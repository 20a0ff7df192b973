#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# On a path that loses full-size packets one way only, the other way looks dead, too. A request that
# was received, read and answered is not acknowledged, for as long as one cares to wait: its
# acknowledgement travels in the answer's first packet, and is lost with it. One would expect the
# request's retransmission to bring a plain acknowledgement, as a duplicate does. It brings another
# retransmission of the answer instead, for the sender is in recovery, and that is of full size.
#
# So tcpi_unacked > 0, SIOCOUTQ > 0 and an expired TCP_USER_TIMEOUT don't say which way is broken.
# Where the server has nothing to say, the same request is acknowledged at once.
#
# Seen on Linux 6.18.44 (Python 3.11, iproute2 6.1), as root (network namespaces with a veth pair,
# MTU 9000 at the server and 1500 at the client):
#   not answered: acknowledged
#   answered by 64 KiB: after 5 s 38 bytes are unacknowledged, and were retransmitted 5 times; the server read them after 0 s
# Exit: 0 as seen; 1 where the kernel behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.py" <<'EOF'
import array
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time

SIOCOUTQ = 0x5411
TCPI_TOTAL_RETRANS = 100
FAR, NEAR = "192.0.2.1", "192.0.2.2"
REQUEST = 38
WAIT_S = 5


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def read_all(connection, size):
    while size:
        size -= len(connection.recv(size))


def serve(connection, answer, read):
    for _ in range(4):
        read_all(connection, 100)
        connection.sendall(bytes(100))
    read_all(connection, REQUEST)
    read.append(time.monotonic())
    try:
        connection.sendall(answer)
    except OSError:
        pass


def far():
    """The server, in a namespace of its own. What it has read it says by its standard output."""
    listener = socket.create_server((FAR, 5555))
    print("listens", flush=True)
    for answer in (b"", bytes(65536)):
        connection, _ = listener.accept()
        read = []
        # Its answer may never go.
        threading.Thread(target=serve, args=(connection, answer, read), daemon=True).start()
        while not read:
            time.sleep(0.01)
        print(read[0], flush=True)


def unacknowledged(connection):
    out = array.array("i", [0])
    fcntl.ioctl(connection.fileno(), SIOCOUTQ, out)
    return out[0]


def retransmitted(connection):
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[TCPI_TOTAL_RETRANS:][:4], "little")


def ask(server):
    """One connection. Return: bytes unacknowledged at its end, how often they were sent again, when
    the server had them."""
    connection = socket.create_connection((FAR, 5555))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # As any handshake does: from now on acknowledgements wait for data to go with.
    for _ in range(4):
        connection.sendall(bytes(100))
        read_all(connection, 100)
    began = time.monotonic()
    connection.sendall(bytes(REQUEST))
    while unacknowledged(connection) and time.monotonic() < began + WAIT_S:
        time.sleep(0.01)
    return (unacknowledged(connection), retransmitted(connection),
            float(server.stdout.readline()) - began)


def near():
    server = subprocess.Popen(["unshare", "--net", "sh", "-c", "read x; exec python3 \"$0\" far",
                               sys.argv[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        own = os.readlink("/proc/self/ns/net")
        while os.readlink("/proc/%d/ns/net" % server.pid) == own:
            time.sleep(0.01)
        ip("link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(server.pid))
        enter = ["nsenter", "--net=/proc/%d/ns/net" % server.pid, "ip"]
        for words in (["addr", "add", FAR + "/24", "dev", "far"],
                      # No offload: what is on the wire is what the MTU says.
                      ["link", "set", "far", "mtu", "9000", "gso_max_segs", "1", "up"]):
            subprocess.run([*enter, *words], check=True)
        ip("addr", "add", NEAR + "/24", "dev", "near")
        ip("link", "set", "near", "mtu", "1500", "gso_max_segs", "1", "up")
        # It believes in jumbo frames at this end.
        ip("route", "replace", FAR + "/32", "dev", "near", "advmss", "8960")
        server.stdin.write(b"\n")
        server.stdin.flush()
        server.stdout.readline()
        silent, answered = ask(server), ask(server)
    except (OSError, subprocess.CalledProcessError) as error:
        print("can't be tried here: %s" % error)
        return 2
    finally:
        server.kill()
    print("not answered: %s" % ("acknowledged" if not silent[0] else "%d bytes are not" % silent[0]))
    print("answered by 64 KiB: after %d s %d bytes are unacknowledged, and were retransmitted %d "
          "times; the server read them after %.0f s" % (WAIT_S, *answered))
    return 0 if not silent[0] and answered[0] == REQUEST and answered[1] and answered[2] < 1 else 1


sys.exit(far() if sys.argv[1:] == ["far"] else near())
EOF
exec unshare --net python3 "$dir/t.py"
