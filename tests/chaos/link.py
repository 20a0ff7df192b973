# SPDX-License-Identifier: Apache-2.0
"""Two hosts with a cable between them: network namespaces and a veth pair. What a proxy can't do is
done here: packets get lost while either side's TCP believes that they are on their way."""
import json
import os
import subprocess
import sys

import pytest

import harness

# From RFC 5737 and RFC 3849: addresses that nobody else has.
ADDRESSES = {"source": "192.0.2.1", "destination": "192.0.2.2"}
ADDRESSES_V6 = {"source": "2001:db8::1", "destination": "2001:db8::2"}
# What the slow link lets through at once, and how long a packet may wait for its turn.
BURST = "64kb"
LATENCY = "400ms"
# Foreign traffic that yields to nobody.
FLOOD = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as s:
    # Who sends is not held back by what waits already: SO_SNDBUFFORCE.
    s.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)
    while True:
        try:
            s.sendto(bytes(1400), (sys.argv[1], 9))
        except OSError:
            pass
"""


class Link:
    """Each side's namespace lives as long as a process of ours that does nothing."""

    def __init__(self):
        self.holders = {}
        try:
            self._connect()
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            pytest.skip("no network namespaces with a veth pair here: %s" % error)

    def _connect(self):
        for side in ADDRESSES:
            self.holders[side] = subprocess.Popen(["unshare", "--net", "cat"],
                                                  stdin=subprocess.PIPE)
        for holder in self.holders.values():
            harness.eventually(lambda: self._has_namespace(holder), "a network namespace")
        source, destination = (str(self.holders[side].pid) for side in ADDRESSES)
        subprocess.run(["ip", "link", "add", "eth-source", "netns", source, "type", "veth",
                        "peer", "name", "eth-destination", "netns", destination],
                       check=True, capture_output=True, text=True)
        for side, address in ADDRESSES.items():
            self._run(side, "ip", "address", "add", address + "/30", "dev", "eth-" + side)
            self._run(side, "ip", "address", "add", ADDRESSES_V6[side] + "/64", "dev", "eth-" + side,
                      "nodad")
            self._run(side, "ip", "link", "set", "eth-" + side, "up")

    @staticmethod
    def _has_namespace(holder):
        if holder.poll() is not None:
            raise OSError("unshare --net failed")
        return os.readlink("/proc/%d/ns/net" % holder.pid) != os.readlink("/proc/self/ns/net")

    def enter(self, side):
        """What makes a command run on that side."""
        return ["nsenter", "--net=/proc/%d/ns/net" % self.holders[side].pid]

    def _run(self, side, *command):
        subprocess.run([*self.enter(side), *command], check=True, capture_output=True, text=True)

    def _shape(self, *qdisc):
        for side in ADDRESSES:
            self._run(side, "tc", "qdisc", "replace", "dev", "eth-" + side, "root", *qdisc)

    def black_hole(self, on):
        """Whatever is sent is lost, either way."""
        self._shape("blackhole" if on else "noqueue")

    def drop_large(self):
        """Packets of full size to the destination are lost, and nobody is told: jumbo frames on
        one side, and the other believes that it takes them, too. No offload, so that what is on
        the wire is what the MTU says."""
        for side in ADDRESSES:
            self._run(side, "ip", "link", "set", "eth-" + side, "mtu", "9000", "gso_max_segs", "1")
        self._run("destination", "ip", "link", "set", "eth-destination", "mtu", "1500")
        self._run("destination", "ip", "route", "replace", ADDRESSES["source"] + "/32", "dev",
                  "eth-destination", "advmss", "8960")

    def no_route(self, side, kind):
        """Whoever dials the other side from there is refused by their own host: by EINVAL where the
        route is of the kind "blackhole", by EACCES where it is "prohibit". None: as it was."""
        other = next(address for name, address in ADDRESSES.items() if name != side)
        if kind:
            self._run(side, "ip", "route", "add", kind, other + "/32")
        else:
            self._run(side, "ip", "route", "delete", other + "/32")

    def narrow(self, side, bytes_per_s):
        """What leaves that side waits in a long queue, of three bands: the first one goes first."""
        device = ("dev", "eth-" + side)
        # As many packets are a band's queue.
        self._run(side, "ip", "link", "set", *device, "txqueuelen", "10000")
        self._run(side, "tc", "qdisc", "replace", *device, "root", "handle", "1:", "tbf", "rate",
                  "%dbps" % bytes_per_s, "burst", BURST, "limit", "64mb")
        self._run(side, "tc", "qdisc", "add", *device, "parent", "1:1", "pfifo_fast")

    def flood(self, side):
        """Others' traffic from that side to the other, more than any link takes: the process that
        sends it."""
        other = next(address for name, address in ADDRESSES.items() if name != side)
        return subprocess.Popen([*self.enter(side), sys.executable, "-c", FLOOD, other])

    def queue(self, side):
        """What has left by it so far, and what waits in it, in bytes."""
        said = subprocess.run([*self.enter(side), "tc", "-j", "-s", "qdisc", "show", "dev",
                               "eth-" + side], check=True, capture_output=True, text=True).stdout
        root = next(qdisc for qdisc in json.loads(said) if qdisc["kind"] == "tbf")
        return root["bytes"], root["backlog"]

    def limit(self, bytes_per_s):
        """Either way; None: no limit."""
        if bytes_per_s:
            self._shape("tbf", "rate", "%dbps" % bytes_per_s, "burst", BURST, "latency", LATENCY)
        else:
            self._shape("noqueue")

    def close(self):
        for holder in self.holders.values():
            holder.stdin.close()
            holder.wait()
