# SPDX-License-Identifier: Apache-2.0
"""Whoever reaches the daemons' TCP ports: without a certificate, with one that is not allowed, and a
host of ours that lies.

    hostile_peer.py {"pages_port":, "ports": [...], "identities": {NAME: {"cert":, "key":, "ca":}},
                     "seed":}
"""
import json
import pathlib
import random
import socket
import struct
import sys

import hostile
import stream
from pki import Identity

# As a TLS client begins, and never ends.
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506)


class Peer:
    def __init__(self, config):
        self.rng = random.Random(config["seed"])
        self.pages_port = config["pages_port"]
        self.ports = config["ports"]
        self.identities = {
            name: Identity(**{what: pathlib.Path(path) for what, path in paths.items()})
            for name, paths in config["identities"].items()}
        self.strangers = sorted(set(self.identities) - {"destination"})
        self.trickling = hostile.Held(120)
        self.half_open = hostile.Held(400)
        self.admitted = hostile.Held(60)

    def _connect(self, port=None):
        return socket.create_connection(("127.0.0.1", port or self.rng.choice(self.ports)), 3)

    def _knocks(self, identity):
        connection = stream.dial(self.pages_port, identity)
        try:
            connection.send(stream.frame(stream.HELLO, stream.hello(1, "vm-long")))
            connection.receive()
        finally:
            connection.close()
        return "let in"

    def no_certificate(self):
        return self._knocks(None)

    def certificate_not_allowed(self):
        return self._knocks(self.identities[self.rng.choice(self.strangers)])

    def trickling_handshake(self):
        """A byte at a turn, of each."""
        for _ in range(4):
            sock = self._connect()
            sock.setblocking(False)
            self.trickling.add(sock)
        at = self.rng.randrange(len(CLIENT_HELLO))
        for sock in self.trickling:
            try:
                sock.send(CLIENT_HELLO[at:at + 1])
            except OSError:
                self.trickling.drop(sock)

    def half_open_connections(self):
        for _ in range(8):
            self.half_open.add(self._connect())

    def resets(self):
        for _ in range(8):
            sock = self._connect()
            sock.send(CLIENT_HELLO[:self.rng.randrange(len(CLIENT_HELLO))])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    def garbage_before_tls(self):
        with self._connect() as sock:
            sock.send(self.rng.randbytes(self.rng.randrange(1, 4000)))
            sock.recv(4096)

    def _says(self, data):
        """As one that may connect."""
        connection = stream.dial(self.pages_port, self.identities["destination"])
        try:
            connection.send(data)
            kind, _, _ = connection.receive()
            return "refused" if kind == stream.ERROR else "let in"
        finally:
            connection.close()

    def wrong_token(self):
        return self._says(stream.frame(stream.HELLO, stream.hello(
            self.rng.choice([1, 2, 3]), self.rng.choice(["vm-long", "nobody"]),
            self.rng.randbytes(32), holder=self.rng.randbytes(16))))

    def garbage_hello(self):
        hello = bytearray(stream.hello(1, "vm-long", self.rng.randbytes(32),
                                       regions=[stream.region(0, 1 << 30)] * 3))
        for _ in range(self.rng.randrange(1, 6)):
            hello[self.rng.randrange(len(hello))] = self.rng.randrange(256)
        return self._says(stream.frame(stream.HELLO, self.rng.choice(
            [bytes(hello), self.rng.randbytes(self.rng.randrange(300))])))

    def frames_out_of_turn(self):
        kind = self.rng.randrange(20)
        return self._says(stream.frame(kind, self.rng.randbytes(16), length=self.rng.choice(
            [None, 0, 0xFFFFFFFF])))

    def known_and_silent(self):
        """It has shown its certificate, and says no HELLO."""
        self.admitted.add(stream.dial(self.pages_port, self.identities["destination"]))


def main():
    peer = Peer(json.loads(sys.argv[1]))
    names = ("no_certificate", "certificate_not_allowed", "trickling_handshake",
             "half_open_connections", "resets", "garbage_before_tls", "wrong_token",
             "garbage_hello", "frames_out_of_turn", "known_and_silent")
    hostile.play({name: getattr(peer, name) for name in names}, per_s=20)


if __name__ == "__main__":
    main()
