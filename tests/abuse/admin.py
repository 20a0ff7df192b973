# SPDX-License-Identifier: Apache-2.0
"""An administrator's calls, one after the other on a connection that stays, each timed.

    admin.py {NAME: {"control":, "pid":}, ...}

On a busy machine a call takes as long as whoever is to run waits for a CPU, and that is nobody's
fault here. The kernel counts it, for each thread (schedstat). So besides the time that a call took,
its time without that is told: without what this process and the daemon's loop have waited for a CPU.
What else the loop did meanwhile, and what it waited for, is in it. So that there is one thread here
and no more, HTTP/2 is spoken by hand.
"""
import json
import select
import sys
import time
import types

import hostile
from control_client import message
from test_grpc_server import (DATA, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, WINDOW, ACK, Raw,
                              frame, headers)
from test_grpc_server import message as prefixed

CALLS_PER_S = 20
# Windows so large that none is ever used up.
WINDOWS = frame(SETTINGS, 0, 0, b"\0\4\x7f\xff\xff\xff") + frame(WINDOW, 0, 0, b"\x7f\xfe\0\0")
CALLS = {
    "List": (b"/postcopy.v1.Migrations/List", prefixed(message(
        "postcopy.v1.ListRequest").SerializeToString())),
    "Get": (b"/postcopy.v1.Migrations/Get", prefixed(message(
        "postcopy.v1.GetRequest", id="vm-long").SerializeToString())),
    "GetInfo": (b"/postcopy.v1.Host/GetInfo", prefixed()),
}


def waited_ns(task):
    """For how long it has been ready to run, and did not."""
    try:
        with open(task + "/schedstat") as stat:
            return int(stat.read().split()[1])
    except (OSError, IndexError):
        return 0  # it has ended since


class Admin:
    def __init__(self, name, daemon):
        self.name = name
        self.raw = Raw(types.SimpleNamespace(path=daemon["control"]), preface=False)
        self.raw.sock.settimeout(30)
        self.raw.send(PREFACE + WINDOWS)
        self.stream_id = -1
        self.loop = "/proc/%d/task/%d" % (daemon["pid"], daemon["pid"])

    def waited_ns(self):
        return waited_ns(self.loop) + waited_ns("/proc/thread-self")

    def _status(self):
        """Reads on up to the answer's end."""
        while True:
            got = self.raw.next()
            if not got:
                raise EOFError("the daemon hung up")
            kind, flags, stream_id, fields = got
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.raw.send(frame(kind, ACK, 0, b"" if kind == SETTINGS else fields))
            if kind in (HEADERS, DATA) and stream_id == self.stream_id and flags & END_STREAM:
                return fields[b"grpc-status"]

    def call(self, method):
        """(seconds, the same without waiting for a CPU)"""
        self.stream_id += 2
        path, body = CALLS[method]
        waited, began = self.waited_ns(), time.monotonic()
        self.raw.request(self.stream_id, headers(path), body)
        status = self._status()
        assert status == b"0", "status %s" % status.decode()
        took = time.monotonic() - began
        waited = (self.waited_ns() - waited) / 1e9
        return took, max(0, took - waited)


def main():
    admins = [Admin(*item) for item in json.loads(sys.argv[1]).items()]
    calls, failed = [], []
    turn, ended = 0, False
    while not ended:
        admin = admins[turn % len(admins)]
        method = list(CALLS)[turn // len(admins) % len(CALLS)]
        try:
            calls.append((admin.name + " " + method, *admin.call(method)))
        except hostile.REFUSALS as error:
            failed.append("%s %s: %s" % (admin.name, method, error))
        turn += 1
        ended = bool(select.select([0], [], [], 1 / CALLS_PER_S)[0])
    print(json.dumps({"calls": calls, "failed": failed}), flush=True)


if __name__ == "__main__":
    main()
