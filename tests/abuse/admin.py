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


def schedstat(task):
    """For how long it has run, and been ready to run and did not: nanoseconds."""
    with open(task + "/schedstat") as stat:
        return [int(number) for number in stat.read().split()[:2]]


class Admin:
    def __init__(self, name, daemon):
        self.name = name
        self.raw = Raw(types.SimpleNamespace(path=daemon["control"]), preface=False)
        self.raw.sock.settimeout(30)
        self.raw.send(PREFACE + WINDOWS)
        self.stream_id = -1
        self.loop = "/proc/%d/task/%d" % (daemon["pid"], daemon["pid"])

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
        """Seconds that it took, without waiting for a CPU, and that the loop ran meanwhile."""
        self.stream_id += 2
        path, body = CALLS[method]
        loop, ours = schedstat(self.loop), schedstat("/proc/thread-self")
        began = time.monotonic()
        self.raw.request(self.stream_id, headers(path), body)
        status = self._status()
        assert status == b"0", "status %s" % status.decode()
        took = time.monotonic() - began
        ran, waited = (after - before for after, before in zip(schedstat(self.loop), loop))
        waited += schedstat("/proc/thread-self")[1] - ours[1]
        return took, max(0, took - waited / 1e9), ran / 1e9


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
