# SPDX-License-Identifier: Apache-2.0
"""What the hostile parties have in common: a process of its own, which plays its tricks in turn, at
a bounded rate, until the end of file of stdin, and then says what came of them.

What a trick is told ("refused", "hung up") is no failure of it: any error of a socket, of TLS, of
gRPC. Everything else is a mistake in the trick, and is told as one.
"""
import collections
import json
import os
import pathlib
import resource
import select
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))

import grpc  # noqa: E402

import harness  # noqa: E402

# They wait for nobody long.
harness.DEADLINE_S = 3

REFUSALS = (OSError, EOFError, AssertionError, harness.Failure, harness.ControlError, grpc.RpcError)


class Held:
    """Connections that are kept open, so many at most; those that the daemon has closed make room."""

    def __init__(self, most):
        self.most = most
        self.held = collections.deque()

    def add(self, what):
        self.held.append(what)
        if len(self.held) > self.most:
            self.held.popleft().close()

    def __iter__(self):
        return iter(list(self.held))

    def drop(self, what):
        self.held.remove(what)
        what.close()

    def close(self):
        while self.held:
            self.held.pop().close()


def stdin_ends_within(seconds):
    return bool(select.select([0], [], [], max(0, seconds))[0])


def play(tricks, per_s):
    """@tricks: {name: function}; @per_s: turns a second, all together."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    played = {name: collections.Counter() for name in tricks}
    mistakes = []
    due, ended = time.monotonic(), False
    while not ended:
        for name, trick in tricks.items():
            due = max(due + 1 / per_s, time.monotonic())
            ended = stdin_ends_within(due - time.monotonic())
            if ended:
                break
            try:
                played[name][trick() or "played"] += 1
            except REFUSALS:
                played[name]["refused"] += 1
            except Exception:  # pylint: disable=broad-except
                played[name]["mistaken"] += 1
                mistakes.append("%s: %s" % (name, traceback.format_exc()))
    times = os.times()
    print(json.dumps({"played": played, "mistakes": mistakes[:3],
                      "cpu_s": times.user + times.system}), flush=True)
    # Whatever is still open ends with the process, as it would with any that is killed.
    os._exit(0)
