# SPDX-License-Identifier: Apache-2.0
"""A host that may be a source, has the token, and lies to a destination about migrations of its own:
in its pages, in what it says was written while they are copied, and about memory that comes late.

    hostile_source.py {"control":, "vmm":, "identity": {"cert":, "key":, "ca":}, "port":, "seed":}

It listens on one port, so that somebody can hear the last words of its migrations there when it is
gone. Its VMM, too, does what it can: its userfaultfd blocks.
"""
import collections
import json
import os
import pathlib
import random
import socket
import struct
import sys
import threading
import time

import hostile
import pyvmm
import stream
from harness import Control, ControlError
from pki import Identity
from stream import FakeSource, WarmSource
from test_late import LateVmm
from test_stream_destination import BAD_REPLIES, LIES, lie_once
from test_warm_destination import LIES as DIRTY_LIES

SIZE = 1 << 20
UNITS = SIZE // stream.UNIT
TOKEN = stream.TOKEN
Daemon = collections.namedtuple("Daemon", "vmm_path")


UFFD_BLOCKING = os.O_CLOEXEC | pyvmm.UFFD_USER_MODE_ONLY


class BlockingVmm(pyvmm.DestinationVmm):
    UFFD_FLAGS = UFFD_BLOCKING


class LyingLate(LateVmm):
    """A VMM whose memory comes late, and not as it should."""

    UFFD_FLAGS = UFFD_BLOCKING

    def __init__(self, daemon, migration_id, how):
        super().__init__(daemon, migration_id)
        self.how = how
        self.make_memory({"smaller": SIZE // 2, "larger": SIZE * 2}.get(how, SIZE))
        if how == "early":
            self.say_memory()

    def load(self):
        self.vmstate_comes()
        if self.how not in ("never", "loaded"):
            self.say_memory()
        if self.how == "twice":
            self.say_memory()
        if self.how == "right":
            self.expect(pyvmm.ATTACHED)
        if self.how != "never":
            self.run()


class Stalling(FakeSource):
    """Goes silent at one kind of frame, for as long as it is let."""

    def __init__(self, identity, content, kind, port):
        self.kind = kind
        self.over = threading.Event()
        super().__init__(identity, content, port=port)

    def _answer(self, connection, kind, payload, request_id):
        if kind == self.kind:
            self.over.wait()
            raise EOFError
        super()._answer(connection, kind, payload, request_id)

    def close(self):
        self.over.set()
        super().close()


class Boasting(FakeSource):
    """Its vmstate is larger than any."""

    def _answer(self, connection, kind, payload, request_id):
        if kind == stream.SWITCHOVER:
            connection.send(stream.frame(stream.VMSTATE, struct.pack("<QQQ", 1 << 63, 1, 2)))
        else:
            super()._answer(connection, kind, payload, request_id)


# What a SYNC, or a SWITCHOVER of a guest that was tracked, is answered with.
HARVESTS = {
    **DIRTY_LIES,
    "that it does not track": stream.tracked(95, "\n\x1b[2J" * 50),
    "two harvests": stream.dirty(0, [1], stream.DIRTY_LAST) * 2,
    "all of it": stream.dirty(0, range(UNITS)) + stream.dirty(0, [], stream.DIRTY_LAST),
}


class Harvesting(WarmSource):
    """Lies about what its guest has written: at one round, at each, or at the pause alone."""

    def __init__(self, identity, content, harvest, when, port):
        self.lie, self.when = harvest, when
        self.rounds = 0
        super().__init__(identity, content, port=port)

    def send_harvest(self, connection, found):
        self.rounds += 1
        if self.when == "always" or self.rounds == self.when or (self.when == "paused" and
                                                                 self.paused):
            connection.send(self.lie)
        else:
            super().send_harvest(connection, found)


class Endless(WarmSource):
    """A harvest that never comes to its end."""

    def send_harvest(self, connection, found):
        some = stream.dirty(0, range(0, UNITS, 2)) * 16
        while not self.closed:
            connection.send(some)


class Untimely(WarmSource):
    """Says what was written while nobody has asked: before the vmstate, amid it, or behind it."""

    def __init__(self, identity, content, where, port):
        self.where = where
        super().__init__(identity, content, port=port)

    def _answer(self, connection, kind, payload, request_id):
        last = stream.dirty(0, [3], stream.DIRTY_LAST)
        if kind == stream.TRACK and self.where == "tracked":
            connection.send(last)
        if kind == stream.SWITCHOVER and self.where == "vmstate":
            connection.send(stream.frame(stream.VMSTATE, struct.pack("<QQQ", 7, 1, 2)) + last)
        super()._answer(connection, kind, payload, request_id)
        if kind == stream.SWITCHOVER and self.where == "behind":
            connection.send(last)
        if kind == stream.GET and self.where == "pages":
            connection.send(last)


class Trickling:
    """Takes a connection, and sends a byte now and then that are no handshake."""

    def __init__(self, port):
        self.listener = socket.create_server(("127.0.0.1", port))
        self.address = "127.0.0.1:%d" % port
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        held = []
        self.listener.settimeout(0.1)
        while not self.closed.is_set():
            try:
                held.append(self.listener.accept()[0])
            except TimeoutError:
                pass
            for sock in list(held):
                try:
                    sock.send(b"\x16")
                except OSError:
                    held.remove(sock)
                    sock.close()
        for sock in held:
            sock.close()
        self.listener.close()

    def close(self):
        self.closed.set()
        self.thread.join()


def unreadable(source, region, first_unit, mask, request_id):
    """An error for each page."""
    return stream.pages(region, first_unit, 0, 0, b"", request_id, error_mask=mask)


def cut_short(source, region, first_unit, mask, request_id):
    """Half of the answer, and a reset."""
    raise EOFError


class Source:
    def __init__(self, config):
        self.rng = random.Random(config["seed"])
        self.config = config
        self.identity = Identity(**{name: pathlib.Path(path)
                                    for name, path in config["identity"].items()})
        self.content = pyvmm.guest_content(SIZE)
        self.port = config["port"]
        self.number = 0

    def _fake(self, answer_get=None, kind=FakeSource, **options):
        return kind(self.identity, self.content, answer_get, port=self.port, **options)

    def _migration(self, source, lasts_s=5, touches=True, warm=None, attach=None):
        """One of its own, from beginning to end. Returns the state that it came to. Its guest
        touches a page and waits for it; not where it would get a machine check for it, and this
        process with it."""
        self.number += 1
        name = "evil-source-%d" % self.number
        vmm = None
        with Control(self.config["control"]) as control:
            try:
                control.call("Prepare", id=name, role="destination", token=TOKEN,
                             source=source.address, streams=2)
                vmm = (attach or self._attach)(name)
                control.call("Start", id=name, **({"warm": warm} if warm else {}))
                self._resume(vmm, lasts_s, touches)
                return control.call("Get", id=name)["state"]
            finally:
                if vmm:
                    vmm.close()
                source.close()
                self._forget(control, name)

    def _attach(self, name):
        return BlockingVmm(Daemon(self.config["vmm"]), name, SIZE)

    @staticmethod
    def _resume(vmm, lasts_s, touches):
        vmm.sock.settimeout(lasts_s)
        until = time.monotonic() + lasts_s
        try:
            vmm.load()
            if touches:
                vmm.touch(7)
            vmm.sock.settimeout(max(0.01, until - time.monotonic()))
            vmm.receive()
        except hostile.REFUSALS:
            pass

    @staticmethod
    def _forget(control, name):
        for method in ("Cancel", "Delete"):
            try:
                control.call(method, id=name)
            except ControlError:
                pass

    def lies(self):
        lie = LIES[self.rng.choice(list(LIES))]
        return self._migration(self._fake(lie_once(lie)))

    def lies_always(self):
        lie = LIES[self.rng.choice(list(LIES))]
        return self._migration(self._fake(lie))

    def stalls(self):
        kind = self.rng.choice([stream.HELLO, stream.SWITCHOVER, stream.GET, stream.PROBE,
                                stream.COMPLETE])
        return self._migration(Stalling(self.identity, self.content, kind, self.port))

    def other_memory(self):
        regions = self.rng.choice(list(BAD_REPLIES.values()) + [
            [stream.region(0, SIZE, page_size=2 << 20)], [stream.region(0, SIZE, page_size=12288)]])
        return self._migration(self._fake(reply_regions=regions))

    def boasts(self):
        return self._migration(self._fake(kind=Boasting))

    def errors_for_each_page(self):
        return self._migration(self._fake(unreadable), touches=False)

    def resets(self):
        return self._migration(self._fake(cut_short))

    def trickles(self):
        return self._migration(Trickling(self.port), 4)

    def _warm(self, source, lasts_s=3):
        return self._migration(source, lasts_s, warm={"max_rounds": 3})

    def lies_about_writes(self):
        return self._warm(Harvesting(
            self.identity, self.content, self.rng.choice(list(HARVESTS.values())),
            self.rng.choice(["always", "paused", 1, 2]), self.port))

    def harvests_without_end(self):
        return self._warm(Endless(self.identity, self.content, port=self.port), 1)

    def says_writes_unasked(self):
        where = self.rng.choice(["tracked", "vmstate", "behind", "pages"])
        return self._warm(Untimely(self.identity, self.content, where, self.port))

    def lies_of_pages_and_writes(self):
        """Its guest writes all there is in each round; one answer is a lie, of one generation or
        another."""
        lie = LIES[self.rng.choice(list(LIES))]
        source = Harvesting(self.identity, self.content, HARVESTS["all of it"], "always", self.port)
        told, after = [], self.rng.randrange(1, 40)

        def answer(source, *asked):
            told.append(asked)
            return (lie if len(told) == after else WarmSource.right_answer)(source, *asked)
        source.answer_get = answer
        return self._warm(source)

    def late_memory(self):
        """Of another size, twice, not at all, or right, and then each answer is a lie."""
        how = self.rng.choice(["right", "smaller", "larger", "twice", "never", "loaded", "early"])
        lie = LIES[self.rng.choice(list(LIES))]
        warm = self.rng.choice([None, {"max_rounds": 2}])
        source = (WarmSource(self.identity, self.content, port=self.port) if warm else
                  self._fake(lie_once(lie)))
        return self._migration(source, 2, how == "right", warm,
                               lambda name: LyingLate(Daemon(self.config["vmm"]), name, how))


def main():
    source = Source(json.loads(sys.argv[1]))
    names = ("lies", "lies_always", "stalls", "other_memory", "boasts", "errors_for_each_page",
             "resets", "trickles", "lies_about_writes", "harvests_without_end",
             "says_writes_unasked", "lies_of_pages_and_writes", "late_memory")
    hostile.play({name: getattr(source, name) for name in names}, per_s=2)


if __name__ == "__main__":
    main()
