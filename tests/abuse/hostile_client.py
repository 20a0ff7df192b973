# SPDX-License-Identifier: Apache-2.0
"""A client of the control service that may connect, and is up to no good.

    hostile_client.py {"daemons": [{"control":, "tls_port":}], "identity": {"cert":, "key":, "ca":},
                       "seed":}

What it may do as an operator (cancel somebody's migration) is no abuse and not played.
"""
import gzip
import json
import pathlib
import random
import ssl
import sys
import types

import hostile
from control_client import message
from harness import Control
from pki import Identity
from test_grpc_server import (CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING,
                              PREFACE, RST, SETTINGS, WINDOW, Raw, frame, header, headers)
from test_grpc_server import message as prefixed
from test_grpc_server import tls_context

MIB = 1 << 20
MIGRATIONS = b"/postcopy.v1.Migrations/"
REFLECTION = b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
TOKEN = "c1" * 32
BROKEN = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    PREFACE + frame(PING, 0, 0, b"8 bytes!"),
    PREFACE + frame(SETTINGS, 0, 0, b"12345"),
    PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, b"\xff" * 50),
    PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 2, headers()),
    PREFACE + frame(SETTINGS) + frame(CONTINUATION, 0, 1, headers()),
    PREFACE + frame(SETTINGS) + frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 2,
    PREFACE + frame(SETTINGS) + b"\xff\xff\xff\0\0\0\0\0\1",
]


def encoded(name, **fields):
    return prefixed(message(name, **fields).SerializeToString())


class Client:
    def __init__(self, config):
        self.rng = random.Random(config["seed"])
        self.daemons = [types.SimpleNamespace(path=d["control"], port=d["tls_port"])
                        for d in config["daemons"]]
        paths = {name: pathlib.Path(path) for name, path in config["identity"].items()}
        identity = Identity(**paths)
        self.wrap = tls_context(types.SimpleNamespace(ca=identity.ca), identity).wrap_socket
        self.idle = hostile.Held(600)
        self.slow = hostile.Held(40)
        self.watching = hostile.Held(20)
        self.unread = hostile.Held(20)
        self.unfinished = hostile.Held(20)
        self.turn = 0

    def _raw(self, preface=True):
        """Over TCP every other time."""
        self.turn += 1
        daemon = self.daemons[self.turn // 2 % len(self.daemons)]
        raw = Raw(daemon, preface=preface, wrap=self.wrap if self.turn % 2 else None)
        raw.close = lambda: raw.__exit__()
        raw.sock.setblocking(False)
        return raw

    @staticmethod
    def _push(raw, data):
        """As much as the socket takes. Whether anybody still listens."""
        try:
            raw.sock.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            return False
        return True

    def connections_without_end(self):
        for _ in range(10):
            self.idle.add(self._raw())

    def slow_bytes(self):
        """A request that comes byte by byte."""
        raw = self._raw(preface=False)
        raw.todo = PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, headers(
            MIGRATIONS + b"List")) + frame(DATA, 0, 1, b"\0\0\0\0\7abc")
        self.slow.add(raw)
        for raw in self.slow:
            if raw.todo and self._push(raw, raw.todo[:1]):
                raw.todo = raw.todo[1:]
            elif raw.todo:
                self.slow.drop(raw)

    def streams_not_read(self):
        """Watch at the shortest interval, 100 on a connection."""
        raw = self._raw()
        body = encoded("postcopy.v1.WatchRequest", id="vm-long", interval="0.050s")
        for number in range(100):
            self._push(raw, frame(HEADERS, END_HEADERS, 2 * number + 1, headers(MIGRATIONS + b"Watch"))
                       + frame(DATA, END_STREAM, 2 * number + 1, body))
        self.watching.add(raw)

    def reflection_flood(self):
        """Small questions with large answers, that nobody reads, on all streams there may be."""
        raw = self._raw()
        question = encoded("grpc.reflection.v1.ServerReflectionRequest",
                           file_by_filename="postcopy/v1/control.proto")
        for number in range(100):
            self._push(raw, frame(HEADERS, END_HEADERS, 2 * number + 1, headers(REFLECTION)))
        self.unread.add(raw)
        for raw in self.unread:
            for number in range(100):
                self._push(raw, frame(DATA, 0, 2 * number + 1, question * 20))

    def requests_without_end(self):
        """Nearly 4 MiB on each stream, and never the last byte."""
        raw = self._raw()
        raw.number = 1
        raw.sent = 0
        self.unfinished.add(raw)
        for raw in self.unfinished:
            if not raw.sent:
                self._push(raw, frame(HEADERS, END_HEADERS, raw.number, headers(
                    MIGRATIONS + b"Get")) + frame(DATA, 0, raw.number, b"\0" + (
                        4 * MIB - 1).to_bytes(4, "big")))
            if not self._push(raw, frame(DATA, 0, raw.number, bytes(16384)) * 3):
                self.unfinished.drop(raw)
            raw.sent += 3 * 16384

    def prepares_without_end(self):
        with Control(self.rng.choice(self.daemons).path) as control:
            for _ in range(40):
                control.call("Prepare", id="evil-%016x" % self.rng.getrandbits(64),
                             role="destination", token=TOKEN, source="127.0.0.1:9")

    def cancels_without_end(self):
        """What has ended is remembered, so many of them: those of others are forgotten for it."""
        with Control(self.rng.choice(self.daemons).path) as control:
            for _ in range(10):
                name = "over-%016x" % self.rng.getrandbits(64)
                control.call("Prepare", id=name, role="destination", token=TOKEN,
                             source="127.0.0.1:9")
                control.call("Cancel", id=name)

    def bad_frames(self):
        raw = self._raw(preface=False)
        self._push(raw, self.rng.choice(BROKEN + [self.rng.randbytes(5000)]))
        raw.close()

    def rapid_reset(self):
        raw = self._raw()
        for number in range(1000):
            self._push(raw, frame(HEADERS, END_HEADERS, 2 * number + 1, headers()) +
                       frame(RST, 0, 2 * number + 1, CANCEL.to_bytes(4, "big")))
        raw.close()

    def ping_flood(self):
        raw = self._raw()
        self._push(raw, frame(PING, 0, 0, b"8 bytes!") * 1000)
        raw.close()

    def continuation_flood(self):
        raw = self._raw()
        self._push(raw, frame(HEADERS, 0, 1, headers()) +
                   frame(CONTINUATION, 0, 1, header(b"x", b"y" * 100)) * 500)
        raw.close()

    def gzip_bomb(self):
        raw = self._raw()
        bomb = gzip.compress(bytes(64 * MIB))[:16000]
        self._push(raw, frame(HEADERS, END_HEADERS, 1, headers(
            MIGRATIONS + b"Get", grpc_encoding=b"gzip")) + frame(DATA, END_STREAM, 1,
                                                                 prefixed(bomb, 1)))
        raw.close()

    def calls_without_end(self):
        """Each of the most costly ones, all at once, answers not read."""
        raw = self._raw()
        calls = [(b"List", encoded("postcopy.v1.ListRequest", page_size=1000)),
                 (b"ListMissing", encoded("postcopy.v1.ListMissingRequest", id="vm-long",
                                          page_size=10000)),
                 (b"GetReport", encoded("postcopy.v1.GetReportRequest", id="vm-long"))]
        for number in range(60):
            name, body = calls[number % len(calls)]
            self._push(raw, frame(HEADERS, END_HEADERS, 2 * number + 1, headers(MIGRATIONS + name)) +
                       frame(DATA, END_STREAM, 2 * number + 1, body))
        self.unread.add(raw)


def main():
    client = Client(json.loads(sys.argv[1]))
    names = ("connections_without_end", "slow_bytes", "streams_not_read", "reflection_flood",
             "requests_without_end", "prepares_without_end", "cancels_without_end", "bad_frames",
             "rapid_reset", "ping_flood", "continuation_flood", "gzip_bomb", "calls_without_end")
    hostile.play({name: getattr(client, name) for name in names}, per_s=13)


if __name__ == "__main__":
    main()
