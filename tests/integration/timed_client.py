# SPDX-License-Identifier: Apache-2.0
"""Calls one after the other on a connection that stays, each timed.

On a busy machine a call takes as long as whoever is to run waits for a CPU, and that is nobody's
fault here. The kernel counts it, for each thread (schedstat). So besides the time that a call took,
its time without that is told: without what this thread and the daemon's loop have waited for a CPU.
What else the loop did meanwhile, and what it waited for, is in it. So that there is one thread here
and no more, HTTP/2 is spoken by hand.
"""
import time
import types

from control_client import message
from test_grpc_server import (DATA, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, WINDOW, ACK, Raw,
                              frame, headers)
from test_grpc_server import message as prefixed

# Windows so large that none is ever used up.
WINDOWS = frame(SETTINGS, 0, 0, b"\0\4\x7f\xff\xff\xff") + frame(WINDOW, 0, 0, b"\x7f\xfe\0\0")


def request(service, method, /, **fields):
    """(path, body) of a call of postcopy.v1."""
    body = message("postcopy.v1.%sRequest" % method, **fields).SerializeToString()
    return ("/postcopy.v1.%s/%s" % (service, method)).encode(), prefixed(body)


def schedstat(task):
    """For how long it has run, and been ready to run and did not: nanoseconds."""
    with open(task + "/schedstat") as stat:
        return [int(number) for number in stat.read().split()[:2]]


class TimedClient:
    def __init__(self, control_path, daemon_pid, timeout_s=30):
        self.raw = Raw(types.SimpleNamespace(path=control_path), preface=False)
        self.raw.sock.settimeout(timeout_s)
        self.raw.send(PREFACE + WINDOWS)
        self.stream_id = -1
        self.loop = "/proc/%d/task/%d" % (daemon_pid, daemon_pid)

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

    def call(self, path, body):
        """Seconds that it took, without waiting for a CPU, and that the loop ran meanwhile."""
        self.stream_id += 2
        loop, ours = schedstat(self.loop), schedstat("/proc/thread-self")
        began = time.monotonic()
        self.raw.request(self.stream_id, headers(path), body)
        status = self._status()
        assert status == b"0", "%s: status %s" % (path.decode(), status.decode())
        took = time.monotonic() - began
        ran, waited = (after - before for after, before in zip(schedstat(self.loop), loop))
        waited += schedstat("/proc/thread-self")[1] - ours[1]
        return took, max(0, took - waited / 1e9), ran / 1e9
