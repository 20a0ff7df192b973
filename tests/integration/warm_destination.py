# SPDX-License-Identifier: Apache-2.0
"""A destination in Python that warms: it copies a guest's memory while the guest runs at the source,
and holds the source to what its harvests promise: what was copied, and is in no harvest since, is
what the guest's memory is when it stands still."""
import struct

import stream
from stream import ABORT, ABORT_ACK, PAGES, PONG, UNIT, VMSTATE, VMSTATE_DATA, WORD_UNITS

TRACK, TRACKED, SYNC, DIRTY = range(19, 23)
LAST = 1


def runs(payload):
    """The dirty units of one DIRTY frame."""
    _, _, unit = struct.unpack_from("<IIQ", payload)
    at, units = 16, set()

    def leb128():
        nonlocal at
        value = shift = 0
        while True:
            byte = payload[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(payload):
        unit += leb128()
        length = leb128()
        units.update(range(unit, unit + length))
        unit += length
    return units


class WarmDestination:
    """One region's copy, at a source daemon."""

    def __init__(self, daemon, identity, migration_id, size, holder=stream.HOLDER):
        self.where = (daemon.port, identity)
        self.id = migration_id
        self.size = size
        self.whom = dict(migration_id=migration_id, holder=holder)
        self.copy = {}  # unit -> its bytes, of what counts
        self.pages = None
        self.epoch = 0
        self.vmstate = None
        self.dial()

    def dial(self):
        """What a lost connection costs: nothing that was copied counts."""
        self.control, reply = stream.dial_stream(*self.where, stream.CONTROL, epoch=self.epoch,
                                                 regions=[stream.region(0, self.size)], **self.whom)
        assert reply[4] == [1], "the source does not know TRACK"
        self.epoch = reply[2][0]

    def reply(self):
        """The next frame of the control connection that is no sign of life."""
        while True:
            kind, payload, _ = self.control.receive()
            if kind != PONG:
                return kind, payload

    def tracked(self, kind, payload):
        assert kind == TRACKED, "type %d where TRACKED was due" % kind
        return struct.unpack_from("<I", payload)[0], payload[4:].decode()

    def track(self):
        """(0, "") or why it can't be."""
        self.copy = {}
        self.control.send(stream.frame(TRACK))
        return self.tracked(*self.reply())

    def harvest(self, kind, payload):
        dirty = set()
        while True:
            assert kind == DIRTY, "type %d where DIRTY was due" % kind
            if struct.unpack_from("<II", payload)[1] & LAST:
                break
            dirty |= runs(payload)
            kind, payload = self.reply()
        assert all(unit < self.size // UNIT for unit in dirty)
        for unit in dirty:
            self.copy.pop(unit, None)
        return dirty

    def sync(self):
        """The units that were written; a refusal is (code, text)."""
        self.control.send(stream.frame(SYNC))
        kind, payload = self.reply()
        return self.tracked(kind, payload) if kind == TRACKED else self.harvest(kind, payload)

    def read(self, units):
        """{unit: bytes} of these."""
        if self.pages is None:
            self.pages, _ = stream.dial_stream(*self.where, stream.BULK, epoch=self.epoch,
                                               **self.whom)
        words = {}
        for unit in units:
            words[unit // WORD_UNITS] = words.get(unit // WORD_UNITS, 0) | 1 << unit % WORD_UNITS
        found = {}
        for word, mask in words.items():
            self.pages.send(stream.get(0, word * WORD_UNITS, mask))
            kind, payload, _ = self.pages.receive()
            assert kind == PAGES, payload[4:]
            data_mask, zero_mask = struct.unpack_from("<QQ", payload, 16)
            at = stream.PAGES_HEAD
            for bit in range(WORD_UNITS):
                if data_mask >> bit & 1:
                    found[word * WORD_UNITS + bit] = payload[at:at + UNIT]
                    at += UNIT
                elif zero_mask >> bit & 1:
                    found[word * WORD_UNITS + bit] = bytes(UNIT)
        return found

    def fill(self):
        """Copies what is missing, while the guest writes."""
        self.copy.update(self.read(set(range(self.size // UNIT)) - self.copy.keys()))

    def switch_over(self, send=True):
        """Returns the last harvest, or None where VMSTATE came without one: nothing counts then."""
        if send:
            self.control.send(stream.frame(stream.SWITCHOVER))
        kind, payload = self.reply()
        last = self.harvest(kind, payload) if kind == DIRTY else None
        if kind == DIRTY:
            kind, payload = self.reply()
        else:
            self.copy = {}
        assert kind == VMSTATE, payload[4:]
        length = struct.unpack_from("<Q", payload)[0]
        vmstate = b""
        while len(vmstate) < length:
            kind, payload = self.reply()
            assert kind == VMSTATE_DATA
            vmstate += payload
        assert self.vmstate in (None, vmstate)
        self.vmstate = vmstate
        return last

    def wrong(self):
        """The units whose copy counts and is not what the paused guest has."""
        now = self.read(set(range(self.size // UNIT)))
        return [unit for unit, content in self.copy.items() if now[unit] != content]

    def abort(self):
        self.control.send(stream.frame(ABORT))
        kind, payload = self.reply()
        assert kind == ABORT_ACK, payload[4:]

    def complete(self):
        self.control.send(stream.frame(stream.COMPLETE))
        assert self.reply()[0] == stream.COMPLETE_ACK

    def close(self):
        for connection in (self.pages, self.control):
            if connection:
                connection.close()
        self.pages = None
