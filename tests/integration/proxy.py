# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy between destination and source, that can do to connections what networks do."""
import collections
import selectors
import socket
import struct
import threading
import time

CHUNK = 65536
# Between two looks at what may be sent.
TICK_S = 0.01


class Proxy:
    """Forwards to @target, "host:port". All of it is done by one thread of its own."""

    def __init__(self, target):
        host, _, port = target.rpartition(":")
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.pairs = []
        self.black = False
        self.refusing = False
        self.bytes_per_s = None
        self.allowance = 0.0
        self.delay_s = 0.0
        self.held = collections.deque()  # (when it is due, pair, data)
        self.forwarded = 0
        self.stopping = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def cut(self):
        """Resets every connection."""
        with self.lock:
            for pair in self.pairs:
                for sock in pair:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.close()
            self.pairs = []

    def black_hole(self, on):
        """Nothing is forwarded and nobody is told; connections are accepted by the kernel still,
        as by a host whose packets get lost on the way."""
        self.black = on

    def refuse(self, on):
        """Every connection is reset, new ones too."""
        self.refusing = on
        if on:
            self.cut()

    def limit(self, bytes_per_s):
        self.allowance = 0.0
        self.bytes_per_s = bytes_per_s

    def delay(self, seconds):
        """What the target sends arrives so much later, in order, as from far away."""
        self.delay_s = seconds

    def close(self):
        self.stopping = True
        self.thread.join()
        self.cut()
        self.listener.close()

    def _accept(self):
        client, _ = self.listener.accept()
        if self.refusing:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            return
        try:
            server = socket.create_connection(self.target, timeout=1)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(10)
        with self.lock:
            self.pairs.append((client, server))

    def _end(self, pair):
        for sock in pair:
            sock.close()
        if pair in self.pairs:
            self.pairs.remove(pair)

    @staticmethod
    def _send(sock, data):
        if not data:
            raise ConnectionResetError
        sock.sendall(data)

    def _release(self):
        """Sends what was held back for long enough. Returns how long the next one must wait."""
        while self.held and self.held[0][0] <= time.monotonic():
            _, pair, data = self.held.popleft()
            with self.lock:
                if pair not in self.pairs:
                    continue
                try:
                    self._send(pair[0], data)
                except OSError:
                    self._end(pair)
        return max(0, self.held[0][0] - time.monotonic()) if self.held else TICK_S

    def _forward(self, pair, source):
        other = pair[1] if source is pair[0] else pair[0]
        most = CHUNK if self.bytes_per_s is None else int(min(CHUNK, self.allowance))
        if most < 1:
            return
        try:
            data = source.recv(most)
            if source is pair[1] and (self.delay_s or self.held):
                self.held.append((time.monotonic() + self.delay_s, pair, data))
                return
            self._send(other, data)
        except OSError:
            self._end(pair)
            return
        self.forwarded += len(data)
        self.allowance -= len(data)

    def _run(self):
        before = time.monotonic()
        while not self.stopping:
            wait_s = min(TICK_S, self._release())
            with self.lock:
                watched = {} if self.black else {
                    sock: pair for pair in self.pairs for sock in pair}
            now = time.monotonic()
            if self.bytes_per_s is not None:
                self.allowance = min(self.allowance + (now - before) * self.bytes_per_s,
                                     max(self.bytes_per_s / 10, 1))
                if self.allowance < 1:
                    watched = {}
            before = now
            with selectors.DefaultSelector() as selector:
                try:
                    for sock, pair in watched.items():
                        selector.register(sock, selectors.EVENT_READ, pair)
                except (OSError, ValueError):  # cut() was faster
                    continue
                if not self.black:
                    selector.register(self.listener, selectors.EVENT_READ, None)
                ready = selector.select(wait_s)
            for key, _ in ready:
                if key.data is None:
                    self._accept()
                    continue
                with self.lock:
                    if key.data in self.pairs:
                        self._forward(key.data, key.fileobj)
