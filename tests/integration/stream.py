# SPDX-License-Identifier: Apache-2.0
"""The page stream spoken from Python, rightly or wrongly: a destination's client and a
source's server. The frames are those of src/stream/frame.h, the two protobuf messages
those of proto/postcopy/v1/stream.proto, encoded by hand so that they can be wrong too; the proofs
those of src/stream/hello.h, made here from RFC 8446 and not by the library that the daemon has."""
import hashlib
import hmac
import pathlib
import socket
import ssl
import struct
import tempfile
import threading

from harness import DEADLINE_S, TOKEN

UNIT = 4096
WORD_UNITS = 64
ALPN = "postcopy/1"
VERSION = 3

HELLO, HELLO_REPLY, ERROR, GET, PAGES, SWITCHOVER, VMSTATE, VMSTATE_DATA = range(1, 9)
RESUMED, COMPLETE, COMPLETE_ACK, ABORT, ABORT_ACK, PING, PONG, PROBE, PROBE_REPLY = range(9, 18)
PROOF, TRACK, TRACKED, SYNC, DIRTY, VMSTATE_AHEAD = range(18, 24)
DIRTY_LAST = 1
CONTROL, URGENT, BULK = 1, 2, 3

# Who dials, unless a test says otherwise.
HOLDER = b"A" * 16

FULL_MASK = (1 << WORD_UNITS) - 1
PAGES_HEAD = 40  # the payload of PAGES before its data


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    """One protobuf field: an int as varint, bytes length-delimited, None left out."""
    if value is None:
        return b""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fixed64(number, value):
    return varint(number << 3 | 1) + struct.pack("<Q", value)


def region(guest_phys_addr, size, page_size=UNIT, memory=1):
    return field(1, guest_phys_addr) + field(2, size) + field(3, page_size) + field(4, memory)


def hello(role, migration_id, proof=bytes(32), epoch=0, regions=(), version=VERSION, holder=HOLDER,
          ahead=None):
    return (field(1, version) + field(2, role) + field(3, migration_id.encode()) +
            fixed64(5, epoch) + b"".join(field(6, r) for r in regions) + field(7, holder) +
            field(8, proof) + field(10, ahead))


def said(end, role, migration_id, epoch=0, holder=HOLDER, version=VERSION):
    """What a proof stands for, beside its connection."""
    return struct.pack("<IIIQ", version, end, role, epoch) + holder + migration_id.encode()


DESTINATION_END, SOURCE_END = 1, 2


def exported(secret, label, context, length=32):
    """RFC 8446, 7.5, from the connection's exporter_master_secret."""
    kind = hashlib.sha256 if len(secret) == 32 else hashlib.sha384

    def expand(key, name, value, size):
        name = b"tls13 " + name
        info = struct.pack(">HB", size, len(name)) + name + bytes([len(value)]) + value
        return hmac.digest(key, info + b"\1", kind)[:size]

    of_label = expand(secret, label, kind(b"").digest(), kind().digest_size)
    return expand(of_label, b"exporter", kind(context).digest(), length)


def hello_reply(epoch, regions=(), version=VERSION, warm=None, abort_text=None):
    return (field(1, version) + fixed64(2, epoch) + b"".join(field(3, r) for r in regions) +
            field(4, warm) + field(6, abort_text))


def read_fields(message):
    """A protobuf message as {number: [values]}."""
    fields, at = {}, 0

    def read_varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = read_varint()
        if key & 7 == 0:
            value = read_varint()
        elif key & 7 == 1:
            value = struct.unpack_from("<Q", message, at)[0]
            at += 8
        else:
            length = read_varint()
            value = message[at:at + length]
            at += length
        fields.setdefault(key >> 3, []).append(value)
    return fields


def frame(kind, payload=b"", request_id=0, flags=0, length=None):
    length = len(payload) if length is None else length
    return struct.pack("<HHIQ", kind, flags, length, request_id) + payload


def get(region_index, first_unit, mask, request_id=1):
    return frame(GET, struct.pack("<IIQQ", region_index, 0, first_unit, mask), request_id)


def pages(region_index, first_unit, data_mask, zero_mask, data, request_id=1, error_mask=0):
    return frame(PAGES, struct.pack("<IIQQQQ", region_index, 0, first_unit, data_mask, zero_mask,
                                    error_mask) + data, request_id)


def dirty(region_index, units, flags=0):
    """A DIRTY frame of a sorted list of units, each a run of its own or of one with the one before."""
    runs, at = b"", 0
    units = list(units)
    while units:
        first = units.pop(0)
        end = first + 1
        while units and units[0] == end:
            end = units.pop(0) + 1
        runs += varint(first - at) + varint(end - first)
        at = end
    return frame(DIRTY, struct.pack("<IIQ", region_index, flags, 0) + runs)


def tracked(code=0, text=""):
    return frame(TRACKED, struct.pack("<I", code) + text.encode())


class Connection:
    """Frames over a TLS socket."""

    def __init__(self, sock):
        self.sock = sock

    def prove(self, what, token=TOKEN):
        """The proof that who says @what knows the token; of this connection's own TLS context."""
        lines = pathlib.Path(self.sock.context.keylog_filename).read_text().splitlines()
        secret = [line.split()[2] for line in lines if line.startswith("EXPORTER_SECRET")][-1]
        shared = exported(bytes.fromhex(secret), b"EXPORTER-postcopy-token", what)
        return hmac.digest(bytes.fromhex(token), shared, "sha256")

    def say_hello(self, role, migration_id, token=TOKEN, proof=None, **fields):
        whom = {name: value for name, value in fields.items() if name in ("epoch", "holder")}
        if proof is None:
            proof = self.prove(said(DESTINATION_END, role, migration_id, **whom), token)
        self.send(frame(HELLO, hello(role, migration_id, proof, **fields)))

    def send(self, data):
        self.sock.sendall(data)

    def _exactly(self, length):
        data = b""
        while len(data) < length:
            more = self.sock.recv(length - len(data))
            if not more:
                raise EOFError("the peer closed the connection")
            data += more
        return data

    def receive(self):
        """(type, payload, request id)"""
        kind, _, length, request_id = struct.unpack("<HHIQ", self._exactly(16))
        return kind, self._exactly(length), request_id

    def receive_error(self):
        """The text of the ERROR that must come next, be it proven or not, and then the end."""
        kind, payload, _ = self.receive()
        if kind == PROOF:
            kind, payload, _ = self.receive()
        assert kind == ERROR, "frame of type %d where an ERROR was due" % kind
        try:
            self.receive()
        except (EOFError, OSError):
            return payload[4:].decode()
        raise AssertionError("the connection goes on after its ERROR")

    def close(self):
        self.sock.close()


def tls_context(side, identity):
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(identity.ca)
    context.load_cert_chain(identity.cert, identity.key)
    context.set_alpn_protocols([ALPN])
    # Python's ssl exports nothing; but it writes down what it could export from.
    context.keys = tempfile.NamedTemporaryFile(prefix="test-stream-keys-")
    context.keylog_filename = context.keys.name
    return context


def dial(port, identity):
    """As a destination; with no identity, a client without a certificate."""
    if identity:
        context = tls_context(ssl.PROTOCOL_TLS_CLIENT, identity)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([ALPN])
    raw = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    try:
        return Connection(context.wrap_socket(raw))
    except BaseException:
        raw.close()
        raise


def dial_stream(port, identity, role, migration_id, **fields):
    """Dials and says HELLO. Returns the connection and the reply's fields."""
    connection = dial(port, identity)
    connection.say_hello(role, migration_id, **fields)
    kind, payload, _ = connection.receive()
    if kind == PROOF:
        whom = {name: value for name, value in fields.items() if name in ("epoch", "holder")}
        assert payload == connection.prove(said(SOURCE_END, role, migration_id, **whom))
        kind, payload, _ = connection.receive()
    if kind != HELLO_REPLY:
        connection.close()
        raise AssertionError("HELLO was answered by type %d: %s" % (kind, payload[4:]))
    return connection, read_fields(payload)


class FakeSource:
    """A source daemon that serves one region of @content, and answers GETs as told.

    @answer_get(source, region, first_unit, mask, request_id) returns the bytes to send for
    one GET; by default the right ones. What it is asked is kept in .asked. Whoever has the
    migration's token, and no other, is a source that a destination believes.
    """

    EPOCH = 77

    def __init__(self, identity, content, answer_get=None, vmstate=b"vmstate", reply_regions=None,
                 token=TOKEN, port=0):
        self.content = content
        self.answer_get = answer_get or FakeSource.right_answer
        self.vmstate = vmstate
        self.regions = reply_regions or [region(0, len(content))]
        self.asked = []
        self.completed = threading.Event()
        self.identity = identity
        self.token = token
        self.listener = socket.create_server(("127.0.0.1", port))
        self.connections = []
        self.closed = False
        self.warm = None  # a daemon of before, that knows no TRACK
        self.abort_text = None  # nor an ABORT that says why
        self.aborts = []  # what was said by each
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    @property
    def address(self):
        return "127.0.0.1:%d" % self.listener.getsockname()[1]

    def right_answer(self, region_index, first_unit, mask, request_id):
        units = [first_unit + bit for bit in range(WORD_UNITS) if mask >> bit & 1]
        data = b"".join(self.content[unit * UNIT:(unit + 1) * UNIT] for unit in units)
        return pages(region_index, first_unit, mask, 0, data, request_id)

    def close(self):
        self.closed = True
        # A blocked accept() is not woken by close(), but by shutdown().
        self.listener.shutdown(socket.SHUT_RDWR)
        self.threads[0].join(DEADLINE_S)
        self.listener.close()
        for raw in self.connections:
            try:
                raw.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self.threads[1:]:
            thread.join(DEADLINE_S)

    def _accept(self):
        while not self.closed:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(raw,), daemon=True)
            # The socket object is detached by wrap_socket(); a duplicate can still be shut down.
            self.connections.append(raw.dup())
            self.threads.append(thread)
            thread.start()

    def _serve(self, raw):
        # Of each connection its own: which secret of a context is whose nobody could tell.
        context = tls_context(ssl.PROTOCOL_TLS_SERVER, self.identity)
        try:
            with raw, context.wrap_socket(raw, server_side=True) as sock:
                connection = Connection(sock)
                try:
                    while True:
                        self._answer(connection, *connection.receive())
                finally:
                    # close() alone would not end it: .connections holds a duplicate.
                    sock.shutdown(socket.SHUT_RDWR)
        except (EOFError, OSError):
            pass

    def prove(self, connection, hello):
        """Both ends know the token: the one that dials by its HELLO's fields."""
        # Of what is 0 nothing travels.
        whom = (hello[2][0], hello[3][0].decode(), hello.get(5, [0])[0], hello[7][0])
        if self.token == TOKEN:
            assert hello[8][0] == connection.prove(said(DESTINATION_END, *whom))
        connection.send(frame(PROOF, connection.prove(said(SOURCE_END, *whom), self.token)))

    def _answer(self, connection, kind, payload, request_id):
        if kind == HELLO:
            fields = read_fields(payload)
            role = fields[2][0]
            self.prove(connection, fields)
            connection.send(frame(HELLO_REPLY, hello_reply(
                self.EPOCH, self.regions if role == CONTROL else (), warm=self.warm,
                abort_text=self.abort_text)))
        elif kind == SWITCHOVER:
            connection.send(frame(VMSTATE, struct.pack("<QQQ", len(self.vmstate), 1000, 2000)))
            connection.send(frame(VMSTATE_DATA, self.vmstate))
        elif kind == GET:
            region_index, _, first_unit, mask = struct.unpack("<IIQQ", payload)
            self.asked.append((region_index, first_unit, mask))
            connection.send(self.answer_get(self, region_index, first_unit, mask, request_id))
        elif kind == COMPLETE:
            connection.send(frame(COMPLETE_ACK))
            self.completed.set()
        elif kind == ABORT:
            self.aborts.append(payload.decode())
            connection.send(frame(ABORT_ACK))
        elif kind == PING:
            connection.send(frame(PONG))
        elif kind == PROBE:
            connection.send(frame(PROBE_REPLY, payload))


class WarmSource(FakeSource):
    """A source whose guest runs on while it is asked for pages: write() is what the guest does, until
    SWITCHOVER has paused it. Its log belongs to the connection that said TRACK; what it had found
    at the pause it says again to whoever asks again.

    .log_of is that connection; .harvests counts; .owed says what was asked too early, with answers
    under way (that were read, and not sent yet)."""

    def __init__(self, identity, content, refuse=None, refuse_code=95, refuse_times=0, **options):
        """@refuse_times: then it can; 0: never."""
        self.lock = threading.RLock()
        self.refuse_code, self.refuse_times = refuse_code, refuse_times
        self.log_of = None
        self.log = set()
        self.kept = None
        self.paused = False
        self.harvests = 0
        self.tracks = 0
        self.refuse = refuse
        self.answering = 0
        self.owed = []
        self.hold_answer = None
        self.before_vmstate = None
        super().__init__(identity, bytearray(content), WarmSource.right_answer, **options)
        self.warm = 1

    def write(self, unit, data):
        """The guest writes a unit. False: it is paused."""
        with self.lock:
            if self.paused:
                return False
            self.content[unit * UNIT:(unit + 1) * UNIT] = data
            self.log.add(unit)
        return True

    def right_answer(self, region_index, first_unit, mask, request_id):
        data, data_mask, zero_mask = b"", 0, 0
        with self.lock:
            self.answering += 1
            for bit in range(WORD_UNITS):
                if mask >> bit & 1:
                    at = (first_unit + bit) * UNIT
                    page = bytes(self.content[at:at + UNIT])
                    if any(page):
                        data_mask |= 1 << bit
                        data += page
                    else:
                        zero_mask |= 1 << bit
        if self.hold_answer:
            self.hold_answer(self)
        with self.lock:
            self.answering -= 1
        return pages(region_index, first_unit, data_mask, zero_mask, data, request_id)

    def harvest(self):
        with self.lock:
            found, self.log = sorted(self.log), set()
            self.harvests += 1
        return found

    def send_harvest(self, connection, found):
        if found:
            connection.send(dirty(0, found))
        connection.send(dirty(0, [], DIRTY_LAST))

    def _answer(self, connection, kind, payload, request_id):
        if kind in (SYNC, SWITCHOVER) and self.answering:
            self.owed.append(kind)
        if kind == TRACK:
            self.tracks += 1
            if self.refuse and (not self.refuse_times or self.tracks <= self.refuse_times):
                connection.send(tracked(self.refuse_code, self.refuse))
                return
            with self.lock:
                self.log_of, self.log = connection, set()
            connection.send(tracked())
        elif kind == SYNC:
            assert self.log_of is connection
            self.send_harvest(connection, self.harvest())
        elif kind == SWITCHOVER:
            with self.lock:
                if not self.paused:
                    self.paused = True
                    self.kept = self.harvest() if self.log_of is connection else None
            if self.kept is not None:
                self.send_harvest(connection, self.kept)
            if self.before_vmstate:
                self.before_vmstate(self, connection)
            super()._answer(connection, kind, payload, request_id)
        else:
            super()._answer(connection, kind, payload, request_id)
