# SPDX-License-Identifier: Apache-2.0
"""The gRPC server library against Debian's grpcio, and against clients that are up to no good."""
import contextlib
import ctypes
import ctypes.util
import gzip
import os
import resource
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time

import pytest

import harness

grpc = pytest.importorskip("grpc", reason="python3-grpcio is not installed")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
NO_ERROR, PROTOCOL_ERROR, CANCEL, CALM = 0, 1, 8, 11
MIB = 1 << 20
TEST_NAME = "postcopy:destination"


class Server(harness.Process):
    """echo-server, on a unix socket and on TCP."""

    def __init__(self, directory, pki, *extra, limits=None):
        self.dir = directory
        self.told = False
        self.path = directory / "control"
        self.ca, self.client = pki.ca, pki.destination
        identity = pki.service
        ready, child = os.pipe()
        command = [harness.BUILD / "tests/grpc/echo-server", "--unix", self.path,
                   "--tls", "127.0.0.1:0", "--cert", identity.cert, "--key", identity.key,
                   "--ca", identity.ca, "--allow", TEST_NAME, *extra]
        self.name, self.log_path = "echo-server", directory / "echo.log"
        with open(self.log_path, "wb") as err:
            self.popen = subprocess.Popen([str(w) for w in command], stdin=subprocess.DEVNULL,
                                          stdout=child, stderr=err, preexec_fn=limits)
        os.close(child)
        line = harness.Lines(ready, self.name).next(time.monotonic() + harness.DEADLINE_S)
        os.close(ready)
        assert line and line.startswith("READY port="), self.log()
        self.port = int(line.partition("=")[2])

    def channel(self, **options):
        return grpc.insecure_channel("unix:%s" % self.path, options=list(options.items()))

    def tls_channel(self, identity):
        credentials = grpc.ssl_channel_credentials(self.ca.read_bytes(), identity.key.read_bytes(),
                                                   identity.cert.read_bytes())
        options = [("grpc.ssl_target_name_override", "localhost")]
        return grpc.secure_channel("127.0.0.1:%d" % self.port, credentials, options=options)

    def stats(self):
        with self.channel() as channel:
            text = call(channel, "Stats")
        names = ("connections", "calls", "connections_total", "refused", "gone", "finished",
                 "rss_kib", "fds")
        return dict(zip(names, map(int, text.split())))

    def settled(self, **want):
        """Waits until all connections but ours are gone, and what else is asked for."""
        want = {"connections": 1, "calls": 1, **want}

        def look():
            stats = self.stats()
            return stats if all(stats[k] == v for k, v in want.items()) else None
        return harness.eventually(look, "%s; now %s" % (want, self.stats()))

    def check_memory(self, before, grown_mib):
        """A sanitizer keeps what is freed: nothing can be said with one."""
        if not harness.sanitizer():
            assert self.stats()["rss_kib"] < before["rss_kib"] + grown_mib * 1024

    def terminate(self):
        if not self.told and self.popen.poll() is None:
            self.popen.terminate()
        self.told = True

    def end(self):
        self.terminate()
        status = self.wait()
        reports = [text for text in harness.SANITIZER_REPORTS if text in self.log()]
        assert status == 0 and not reports, self.log()[-4000:]


@pytest.fixture
def start(pki):
    with contextlib.ExitStack() as stack:
        def run(*extra, **options):
            directory = harness.pathlib.Path(tempfile.mkdtemp(prefix="grpc-test-"))
            stack.callback(shutil.rmtree, directory)
            server = Server(directory, pki, *extra, **options)
            stack.callback(server.kill)
            stack.callback(server.end)
            return server
        yield run


@pytest.fixture
def server(start):
    return start()


def call(channel, method, request=b"", timeout=harness.DEADLINE_S, **options):
    return channel.unary_unary("/test.Echo/" + method)(request, timeout=timeout, **options)


def stream(channel, method, request=b"", timeout=harness.DEADLINE_S):
    return channel.unary_stream("/test.Echo/" + method)(request, timeout=timeout)


def failure(what):
    with pytest.raises(grpc.RpcError) as caught:
        what()
    return caught.value


def frame(kind, flags=0, stream_id=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + \
        struct.pack(">I", stream_id) + payload


def header(name, value):
    """HPACK: a literal that is not indexed, not Huffman-coded."""
    def length(n):
        if n < 127:
            return bytes((n,))
        out, n = b"\x7f", n - 127
        while n > 127:
            out, n = out + bytes((n & 127 | 128,)), n >> 7
        return out + bytes((n,))
    return b"\0" + length(len(name)) + name + length(len(value)) + value


def headers(path=b"/test.Echo/Echo", **replaced):
    fields = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x",
              b"content-type": b"application/grpc", b"te": b"trailers"}
    fields.update({k.replace("_", "-").encode(): v for k, v in replaced.items()})
    if b"method" in fields:
        fields[b":method"] = fields.pop(b"method")
    return b"".join(header(k, v) for k, v in fields.items() if v is not None)


def message(payload=b"", flag=0):
    return bytes((flag,)) + struct.pack(">I", len(payload)) + payload


class Inflater:
    """HPACK's other half, by nghttp2."""

    class Field(ctypes.Structure):
        _fields_ = [("name", ctypes.c_void_p), ("value", ctypes.c_void_p),
                    ("name_len", ctypes.c_size_t), ("value_len", ctypes.c_size_t),
                    ("flags", ctypes.c_uint8)]

    FINAL, EMIT = 1, 2

    def __init__(self):
        self.lib = ctypes.CDLL(ctypes.util.find_library("nghttp2"))
        self.lib.nghttp2_hd_inflate_hd2.restype = ctypes.c_ssize_t
        self.inflater = ctypes.c_void_p()
        assert not self.lib.nghttp2_hd_inflate_new(ctypes.byref(self.inflater))

    def close(self):
        self.lib.nghttp2_hd_inflate_del(self.inflater)

    def fields(self, block):
        found, field, flags = {}, self.Field(), ctypes.c_int(0)
        while not flags.value & self.FINAL:
            n = self.lib.nghttp2_hd_inflate_hd2(self.inflater, ctypes.byref(field),
                                                ctypes.byref(flags), block,
                                                ctypes.c_size_t(len(block)), 1)
            assert n >= 0
            block = block[n:]
            if flags.value & self.EMIT:
                name = ctypes.string_at(field.name, field.name_len)
                found[name] = ctypes.string_at(field.value, field.value_len)
        self.lib.nghttp2_hd_inflate_end_headers(self.inflater)
        return found


class Raw:
    """A client that sends what it likes."""

    def __init__(self, server, preface=True, wrap=None):
        if wrap:
            plain = socket.create_connection(("127.0.0.1", server.port), harness.DEADLINE_S)
            self.sock = wrap(plain)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(harness.DEADLINE_S)
            self.sock.connect(str(server.path))
        self.rest = b""
        self.inflater = Inflater()
        if preface:
            self.send(PREFACE + frame(SETTINGS))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()
        self.inflater.close()

    def send(self, data):
        """What the server does not want to hear any more is lost."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def request(self, stream_id, block, body=None):
        self.send(frame(HEADERS, END_HEADERS, stream_id, block))
        if body is not None:
            self.send(frame(DATA, END_STREAM, stream_id, body))

    def next(self):
        """(kind, flags, stream, payload), of HEADERS the fields; None at the end."""
        while len(self.rest) < 9 or len(self.rest) < 9 + self._length():
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.rest += data
        n = self._length()
        kind, flags, stream_id = self.rest[3], self.rest[4], struct.unpack(">I", self.rest[5:9])[0]
        payload, self.rest = self.rest[9:9 + n], self.rest[9 + n:]
        if kind == HEADERS:
            payload = self.inflater.fields(payload)
        return kind, flags, stream_id, payload

    def _length(self):
        return int.from_bytes(self.rest[:3], "big")

    def next_of(self, *kinds):
        while True:
            got = self.next()
            assert got, "the server hung up"
            if got[0] in kinds:
                return got

    def until(self, kind, stream_id=None):
        while True:
            got = self.next()
            assert got, "the server hung up"
            if got[0] == kind and stream_id in (None, got[2]) and not (
                    kind in (SETTINGS, PING) and got[1] & ACK):
                return got

    def end(self):
        """Reads on until the server hangs up. The error of its GOAWAY and its text, or None."""
        last = None
        while True:
            got = self.next()
            if not got:
                return last
            if got[0] == GOAWAY:
                last = struct.unpack(">I", got[3][4:8])[0], got[3][8:]


# What grpcio does.

@pytest.mark.parametrize("size", [0, 1, 1000, 100000, 4 * MIB - 100])
def test_unary(server, size):
    request = os.urandom(size)
    with server.channel(**{"grpc.max_receive_message_length": -1}) as channel:
        assert call(channel, "Echo", request) == request


def test_over_tls(server):
    with server.tls_channel(server.client) as channel:
        assert call(channel, "Peer") == TEST_NAME.encode()
        assert call(channel, "Echo", b"x" * MIB) == b"x" * MIB
        assert [len(m) for m in stream(channel, "Count", b"20 100000")] == [100000] * 20
    server.settled()


def test_local_peer_is_known(server):
    with server.channel() as channel:
        assert call(channel, "Peer") == b"uid %d" % os.getuid()


def test_stream(server):
    with server.channel() as channel:
        got = [m.split(b" ")[0] for m in stream(channel, "Count", b"1000 50")]
    assert got == [b"%d" % i for i in range(1000)]


def test_stream_of_requests(server):
    with server.channel() as channel:
        chat = channel.stream_stream("/test.Echo/Chat")
        assert list(chat(iter([b"a", b"", b"ccc"]))) == [b"a", b"", b"ccc"]
        assert list(chat(iter([]))) == []


def test_status_with_text_and_details(server):
    with server.channel() as channel:
        for code in grpc.StatusCode:
            if code is grpc.StatusCode.OK:
                continue
            error = failure(lambda: call(channel, "Fail", b"%d" % code.value[0]))
            assert error.code() is code
            assert error.details() == "100% wr\u00f6ng\n"
            trailers = dict(error.trailing_metadata())
            assert trailers["grpc-status-details-bin"] == b"\0\1\xff"
    server.settled()


def test_unknown_method(server):
    with server.channel() as channel:
        assert failure(lambda: call(channel, "Nothing")).code() is grpc.StatusCode.UNIMPLEMENTED


def test_message_too_large(server):
    with server.channel() as channel:
        error = failure(lambda: call(channel, "Echo", b"x" * (4 * MIB + 1)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(channel, "Echo", b"still there") == b"still there"
    server.settled()


def test_large_answer(server):
    with server.channel(**{"grpc.max_receive_message_length": -1}) as channel:
        assert len(call(channel, "Big", b"%d" % (15 * MIB))) == 15 * MIB


def test_compressed_requests(server):
    """A client whose default is gzip could do nothing here."""
    by_gzip = {"compression": grpc.Compression.Gzip}
    with server.channel() as channel:
        for size in 0, 1, 1000, 200000:
            assert call(channel, "Echo", b"x" * size, **by_gzip) == b"x" * size
        chat, said = channel.stream_stream("/test.Echo/Chat"), [b"a" * 500, b"", b"b" * 500]
        assert list(chat(iter(said), **by_gzip)) == said
        # Little that becomes much.
        error = failure(lambda: call(channel, "Echo", b"x" * (300 << 10), **by_gzip))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with server.channel() as channel:
        error = failure(lambda: call(channel, "Echo", b"x" * 1000,
                                     compression=grpc.Compression.Deflate))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    server.settled()


def test_too_many_connections_are_told_so(start):
    """They were told INADEQUATE_SECURITY, by which a client does not try again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        server = start()
        # Root's are 16 more than others have.
        for _ in range(1024 + 16):
            stack.enter_context(Raw(server))
        assert stack.enter_context(Raw(server)).end() == (CALM, b"too many connections")


def test_deadline(server):
    with server.channel() as channel:
        error = failure(lambda: call(channel, "Sleep", b"60000", timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.settled(gone=1)


def test_cancel_in_mid_stream(server):
    with server.channel() as channel:
        calls = stream(channel, "Count", b"1000000 1000")
        assert next(calls) and next(calls)
        calls.cancel()
        assert failure(lambda: list(calls)).code() is grpc.StatusCode.CANCELLED
        server.settled(gone=1)
        assert call(channel, "Echo", b"on") == b"on"


def test_200_streams_at_once(server):
    with server.channel() as channel:
        streams = [stream(channel, "Count", b"30 5000") for _ in range(200)]
        for calls in streams:
            assert sum(len(m) for m in calls) == 30 * 5000
    server.settled(gone=0)


def test_many_short_calls_on_many_connections(server):
    def work():
        for _ in range(10):
            with server.channel(**{"grpc.use_local_subchannel_pool": 1}) as channel:
                for _ in range(10):
                    assert call(channel, "Echo", b"x") == b"x"
                done.append(1)
    done = []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 80
    server.settled()


def test_slow_reader_of_a_long_stream_costs_little(server):
    """100 MiB wait for a client that takes its time; others are served, and memory stays."""
    with server.channel() as channel:
        calls = stream(channel, "Count", b"1600 65536", timeout=120)
        next(calls)
        before = server.stats()
        for _ in range(100):
            next(calls)
            server.check_memory(before, 16)
        assert sum(1 for _ in calls) == 1600 - 101
    server.settled()
    server.check_memory(before, 16)


def test_client_that_does_not_read_at_all(server):
    before = server.stats()
    with Raw(server) as raw:
        raw.request(1, headers(b"/test.Echo/Count"), message(b"1600 65536"))
        harness.eventually(lambda: server.stats()["calls"] == 2, "the call runs")
        # 64 KiB of window and a message or so in the queue.
        server.check_memory(before, 8)
        with server.channel() as channel:
            assert call(channel, "Echo", b"x") == b"x"
    server.settled(gone=1)


def test_drain_lets_running_calls_end(server):
    with server.channel() as channel:
        calls = stream(channel, "Count", b"300 5000")
        assert next(calls)
        server.popen.send_signal(signal.SIGUSR1)
        assert sum(1 for _ in calls) == 299
        # The channel dials anew, to where nobody accepts.
        error = failure(lambda: call(channel, "Echo", timeout=1))
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_drain_in_two_steps(server):
    with Raw(server) as raw:
        raw.request(1, headers(b"/test.Echo/Sleep"), message(b"300"))
        raw.until(SETTINGS)
        server.popen.send_signal(signal.SIGUSR1)
        notice = raw.until(GOAWAY)[3]
        assert struct.unpack(">II", notice[:8]) == (0x7fffffff, NO_ERROR)
        # Sent before the client knew: served.
        raw.request(3, headers(), message(b"late"))
        ping = raw.until(PING)
        raw.send(frame(PING, ACK, 0, ping[3]))
        frames = list(iter(raw.next, None))
        final = [f[3] for f in frames if f[0] == GOAWAY]
        assert [struct.unpack(">II", payload[:8]) for payload in final] == [(3, NO_ERROR)]
        ended = [f[2] for f in frames if f[0] == HEADERS and f[1] & END_STREAM]
        assert sorted(ended) == [1, 3]


def test_end_tells_calls_that_run(server):
    with server.channel() as channel:
        calls = stream(channel, "Count", b"1000000 1000")
        next(calls)
        server.terminate()
        error = failure(lambda: list(calls))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    server.end()


# Requests that no gRPC client makes.

@pytest.mark.parametrize("replaced,status,code", [
    ({"method": b"GET"}, b"405", b"13"),
    ({"content_type": b"application/json"}, b"415", b"3"),
    ({"content_type": b"application/grpcx"}, b"415", b"3"),
    ({"content_type": None}, b"415", b"3"),
    ({"grpc_encoding": b"br"}, b"200", b"12"),
    ({"grpc_timeout": b"1x"}, b"200", b"3"),
    ({"path": b"/test.Echo/Echoo"}, b"200", b"12"),
    ({"junk": b"j" * 17000}, b"200", b"8"),
])
def test_bad_headers_are_answered(server, replaced, status, code):
    block = headers(**replaced)
    with Raw(server) as raw:
        # In frames of at most 16 KiB.
        parts = [block[i:i + 16000] for i in range(0, len(block), 16000)]
        for i, part in enumerate(parts):
            end = END_HEADERS if i == len(parts) - 1 else 0
            raw.send(frame(CONTINUATION if i else HEADERS, end, 1, part))
        got = raw.until(HEADERS)
        assert got[1] & END_STREAM
        fields = got[3]
        assert fields[b":status"] == status
        assert fields[b"grpc-status"] == code
        assert fields[b"grpc-accept-encoding"] == b"identity,gzip"
        # What was to come is not waited for.
        assert raw.until(RST, 1)[3] == struct.pack(">I", NO_ERROR)
    server.settled()


@pytest.mark.parametrize("body,code", [
    (b"", b"12"),
    (message(b"a") + message(b"b"), b"12"),
    (message(b"abc")[:-1], b"13"),
    (message(b"abc")[:3], b"13"),
    (message(b"abc", flag=1), b"13"),
    (message(b"abc", flag=7), b"13"),
    (b"\0\xff\xff\xff\xff", b"8"),
])
def test_bad_messages_are_answered(server, body, code):
    with Raw(server) as raw:
        raw.request(1, headers(), body)
        assert raw.until(HEADERS)[3][b"grpc-status"] == code
        raw.request(3, headers(), message(b"fine"))
        assert raw.until(DATA)[3] == message(b"fine")
    server.settled()


GZIPPED = gzip.compress(b"abc")


@pytest.mark.parametrize("body,code", [
    (b"abc", b"13"),
    (GZIPPED[:-1], b"13"),
    (GZIPPED + b"x", b"13"),
    (b"", b"13"),
    (gzip.compress(bytes(4 * MIB)), b"8"),
], ids=["plain", "cut off", "something after it", "empty", "4 MiB unpacked"])
def test_bad_gzip_is_answered(server, body, code):
    body = message(body, flag=1)
    with Raw(server) as raw:
        raw.request(1, headers(grpc_encoding=b"gzip"), body)
        assert raw.until(HEADERS)[3][b"grpc-status"] == code
        raw.request(3, headers(grpc_encoding=b"gzip"), message(gzip.compress(b"fine"), flag=1))
        assert raw.until(DATA)[3] == message(b"fine")
        # Compressed or not, as each message says.
        raw.request(5, headers(grpc_encoding=b"gzip"), message(b"plain"))
        assert raw.until(DATA, 5)[3] == message(b"plain")
    server.settled()


def test_missing_te_is_tolerated(server):
    with Raw(server) as raw:
        raw.request(1, headers(te=None), message(b"x"))
        assert raw.until(DATA)[3] == message(b"x")


def test_deadline_is_told_by_trailer(server):
    with Raw(server) as raw:
        raw.request(1, headers(b"/test.Echo/Sleep", grpc_timeout=b"100m"), message(b"60000"))
        assert raw.until(HEADERS)[3][b"grpc-status"] == b"4"
    server.settled(gone=1)


def test_what_is_late_is_not_done(server):
    """The deadline has passed when the call comes: it was run, and answered with OK, for the timer
    was asked only later. A client that has given up must not have its migration started."""
    with Raw(server) as raw:
        raw.request(1, headers(grpc_timeout=b"0n"), message(b"x"))
        kind, flags, _, fields = raw.next_of(HEADERS, DATA)
        assert kind == HEADERS and flags & END_STREAM
        assert fields[b"grpc-status"] == b"4"
        # There is time.
        raw.request(3, headers(grpc_timeout=b"20S"), message(b"y"))
        assert raw.until(DATA, 3)[3] == message(b"y")
    server.settled()


# Clients that are up to no good. Each time: they are cut off, counted, and others are served.

def refused(server, before):
    with server.channel() as channel:
        assert call(channel, "Echo", b"served") == b"served"
    server.settled()
    assert server.stats()["refused"] > before["refused"]
    assert "refused_door=control" in server.log()


@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\0" * 100,
    os.urandom(5000),
    PREFACE + frame(PING, 0, 0, b"8 bytes!"),
    PREFACE + b"\xff" * 100,
    PREFACE + frame(SETTINGS, 0, 0, b"12345"),
    PREFACE + frame(SETTINGS, 0, 1),
    PREFACE + frame(SETTINGS) + frame(DATA, 0, 1, b"x"),
    PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 2, headers()),
    PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, b"\xff" * 50),
    PREFACE + frame(SETTINGS) + frame(CONTINUATION, 0, 1, headers()),
    PREFACE + frame(SETTINGS) + frame(HEADERS, 0, 1, headers()) + frame(PING, 0, 0, b"8 bytes!"),
    PREFACE + frame(SETTINGS) + frame(PUSH, 0, 1, b"\0\0\0\2"),
    PREFACE + frame(SETTINGS) + frame(WINDOW, 0, 0, b"\0\0\0\0"),
    PREFACE + frame(SETTINGS) + frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 2,
    PREFACE + frame(SETTINGS) + frame(PING, 0, 0, b"short"),
    PREFACE + frame(SETTINGS, 0, 0, b"\0\5\xff\xff\xff\xff"),
    PREFACE + frame(SETTINGS) + b"\xff\xff\xff\0\0\0\0\0\1",
], ids=range(18))
def test_broken_http2(server, data):
    before = server.stats()
    with Raw(server, preface=False) as raw:
        raw.send(data)
        raw.end()
    refused(server, before)


def test_continuation_flood(server):
    before = server.stats()
    with Raw(server) as raw:
        raw.send(frame(HEADERS, 0, 1, headers()))
        for _ in range(1000):
            raw.send(frame(CONTINUATION, 0, 1, header(b"x", b"y" * 100)))
        raw.end()
    refused(server, before)


def test_header_bomb(server):
    """One large entry of the table, named again and again: much to do for little."""
    with Raw(server) as raw:
        raw.send(frame(HEADERS, END_HEADERS, 1, headers() + b"\x40\1x\x7f\xa1\x1e" + b"y" * 4000))
        raw.send(frame(HEADERS, END_HEADERS, 3, headers() + b"\xbe" * 16000))
        raw.until(HEADERS, 3)
    server.settled()


def test_rapid_reset(server):
    before = server.stats()
    with Raw(server) as raw:
        for i in range(2000):
            raw.send(frame(HEADERS, END_HEADERS, 2 * i + 1, headers()) +
                     frame(RST, 0, 2 * i + 1, struct.pack(">I", CANCEL)))
        assert raw.end() == (CALM, b"too_many_resets")
    refused(server, before)


def test_streams_made_to_be_reset(server):
    before = server.stats()
    with Raw(server) as raw:
        for i in range(2000):
            raw.send(frame(HEADERS, END_HEADERS, 2 * i + 1, headers()) +
                     frame(WINDOW, 0, 2 * i + 1, b"\x7f\xff\xff\xff"))
        assert raw.end() == (CALM, b"too_many_resets")
    refused(server, before)


def test_ping_flood(server):
    before = server.stats()
    with Raw(server) as raw:
        raw.send(frame(PING, 0, 0, b"8 bytes!") * 10)
        assert raw.end() == (CALM, b"too_many_pings")
    refused(server, before)


def test_pings_are_answered(server):
    with Raw(server) as raw:
        raw.send(frame(PING, 0, 0, b"8 bytes!"))
        while True:
            kind, flags, _, payload = raw.next()
            if kind == PING:
                break
        assert (flags, payload) == (ACK, b"8 bytes!")


def test_pings_beside_data_are_no_flood(server):
    with Raw(server) as raw:
        for i in range(20):
            raw.send(frame(PING, 0, 0, b"8 bytes!"))
            raw.request(2 * i + 1, headers(), message(b"x"))
            raw.until(DATA, 2 * i + 1)


def test_flood_of_settings_from_one_who_does_not_read(server):
    before = server.stats()
    with Raw(server) as raw:
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with contextlib.suppress(TimeoutError, socket.timeout):
            raw.sock.settimeout(2)
            for _ in range(2000):
                raw.send(frame(SETTINGS) * 1000)
        server.check_memory(before, 8)
        with server.channel() as channel:
            assert call(channel, "Echo", b"served") == b"served"
    server.settled()


def test_more_streams_than_allowed(server):
    with Raw(server) as raw:
        raw.until(SETTINGS)
        raw.send(frame(SETTINGS, ACK))
        for i in range(300):
            raw.request(2 * i + 1, headers(b"/test.Echo/Sleep"), message(b"60000"))
        harness.eventually(lambda: server.stats()["connections"] == 1 or
                           server.stats()["calls"] <= 257, "bounded")
    server.settled()


def test_requests_that_never_end_are_bounded(server):
    """256 calls a connection, each with nearly all of 4 MiB: beyond 64 MiB they are refused."""
    body = message(b"x" * (2 * MIB))[:-1]
    before = server.stats()
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(Raw(server)) for _ in range(20)]
        threads = [threading.Thread(target=push, args=(raw, body)) for raw in raws]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.check_memory(before, 110)
        with server.channel() as channel:
            error = failure(lambda: call(channel, "Echo", b"x" * (3 * MIB)))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.settled()
    with server.channel() as channel:
        assert len(call(channel, "Echo", b"x" * (3 * MIB))) == 3 * MIB


def push(raw, body):
    """Two requests without their last byte, as fast as the windows let it."""
    for stream_id in (1, 3):
        raw.send(frame(HEADERS, END_HEADERS, stream_id, headers()))
        window, sent = 16384, 0
        while sent < len(body):
            part = body[sent:sent + window]
            raw.send(frame(DATA, 0, stream_id, part))
            sent += len(part)
            credit = 0
            # Half of a window of 64 KiB is given back at a time.
            while sent % 32768 == 0 and credit < 2:
                got = raw.next()
                if not got or got[0] in (HEADERS, RST, GOAWAY):
                    return
                credit += got[0] == WINDOW


def test_10000_connects_and_resets(server):
    before = server.settled()
    linger = struct.pack("ii", 1, 0)
    for i in range(10000):
        sock = socket.create_connection(("127.0.0.1", server.port), harness.DEADLINE_S)
        if i % 3:
            sock.send(PREFACE[:i % 24])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        sock.close()
    after = server.settled()
    assert after["fds"] == before["fds"]
    server.check_memory(before, 4)


def test_2000_local_connects(server):
    before = server.settled()
    for i in range(2000):
        with Raw(server, preface=False) as raw:
            raw.send((PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, headers()))[:i])
    after = server.settled()
    assert after["fds"] == before["fds"]


def test_silent_peers_do_not_lock_others_out(server):
    """More handshakes that don't go on than may: the oldest gives way, and a client gets in."""
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        with server.tls_channel(server.client) as channel:
            assert call(channel, "Echo", b"x") == b"x"
        assert server.stats()["connections"] <= 256 + 3
    server.settled()


def test_slow_clients(server):
    """Who begins and does not go on, all at once; who is idle between calls is kept."""
    before = server.stats()
    with contextlib.ExitStack() as stack:
        prefaces = [stack.enter_context(Raw(server, preface=False)) for _ in range(3)]
        for raw, data in zip(prefaces, (b"", PREFACE[:10], PREFACE)):
            raw.send(data)
        in_headers, in_body, chatting, idle = (stack.enter_context(Raw(server)) for _ in range(4))
        # Its deadline passes meanwhile.
        in_headers.send(frame(HEADERS, 0, 1, headers(grpc_timeout=b"10m")))
        in_body.request(1, headers())
        in_body.send(frame(DATA, 0, 1, message(b"abc")[:6]))
        chatting.request(1, headers(b"/test.Echo/Chat"))
        chatting.send(frame(DATA, 0, 1, message(b"whole") + message(b"abc")[:6]))
        assert chatting.until(DATA)[3] == message(b"whole")
        cpu = cpu_ticks(server)
        for raw in prefaces + [in_headers]:
            raw.end()
        for raw in (in_body, chatting):
            assert raw.until(HEADERS, 1)[3][b"grpc-status"] == b"4"
        # And nobody was busy with waiting.
        assert cpu_ticks(server) - cpu < os.sysconf("SC_CLK_TCK")
        for raw in (in_body, chatting, idle):
            raw.request(3, headers(), message(b"awake"))
            assert raw.until(DATA, 3)[3] == message(b"awake")
    refused(server, before)


def test_out_of_descriptors(start):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    server = start(limits=limit)
    with server.channel() as channel, contextlib.ExitStack() as stack:
        assert call(channel, "Echo", b"x") == b"x"
        for _ in range(60):
            stack.enter_context(Raw(server))
        harness.eventually(lambda: "Too many open files" in server.log(), "EMFILE")
        # It tries again now and then, and not all the time: each time is counted.
        began, first = time.monotonic(), refusals(channel)
        harness.eventually(lambda: refusals(channel) >= first + 3, "further tries")
        assert refusals(channel) - first <= 3 + 20 * (time.monotonic() - began)
    server.settled()


def refusals(channel):
    return int(call(channel, "Stats").split()[3])


def cpu_ticks(server):
    fields = harness.pathlib.Path("/proc/%d/stat" % server.pid).read_text().rsplit(")", 1)[1]
    return sum(map(int, fields.split()[11:13]))


# Who may connect.

def tls_context(pki, identity, alpn="h2"):
    context = ssl.create_default_context(cafile=pki.ca)
    context.check_hostname = False
    if identity:
        context.load_cert_chain(identity.cert, identity.key)
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


@pytest.mark.parametrize("name,alpn", [
    (None, "h2"), ("stranger", "h2"), ("nameless", "h2"), ("forged", "h2"), ("expired", "h2"),
    ("destination", "postcopy/1"), ("destination", None),
])
def test_tls_peers_that_may_not(server, pki, name, alpn):
    before = server.stats()
    context = tls_context(pki, name and getattr(pki, name), alpn)
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        with Raw(server, wrap=context.wrap_socket) as raw:
            raw.request(1, headers(), message(b"x"))
            # TLS 1.3: the client thinks that all is well until it reads.
            assert raw.next() is None, "it was let in"
            raise EOFError
    refused(server, before)


def test_old_tls_is_refused(server, pki):
    context = tls_context(pki, pki.destination)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    before = server.stats()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        Raw(server, wrap=context.wrap_socket)
    refused(server, before)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", PREFACE + frame(SETTINGS), b"\x16\x03\x01\xff\xff" * 9])
def test_no_tls(server, data):
    before = server.stats()
    with socket.create_connection(("127.0.0.1", server.port), harness.DEADLINE_S) as sock:
        sock.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(4096):
                pass
    refused(server, before)


def test_http_11_inside_tls(server, pki):
    before = server.stats()
    context = tls_context(pki, pki.destination)
    with Raw(server, preface=False, wrap=context.wrap_socket) as raw:
        raw.send(b"GET / HTTP/1.1\r\n\r\n")
        raw.end()
    refused(server, before)


OTHER_UID, OTHER_GID, ALLOWED_GID = 54321, 54322, 54323
PROBE = """
import os, socket, sys
uid, gid, extra, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
sock = socket.socket(socket.AF_UNIX)
os.setgroups([int(g) for g in extra.split(",") if g])
os.setgid(gid)
os.setuid(uid)
sock.connect(path)
sock.settimeout(20)
sys.stdout.buffer.write(sock.recv(4096))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("uid,gid,extra,allowed", [
    (OTHER_UID, OTHER_GID, "", False),
    (OTHER_UID, OTHER_GID, "1,2,3", False),
    (OTHER_UID, ALLOWED_GID, "", True),
    (OTHER_UID, OTHER_GID, "1,%d,3" % ALLOWED_GID, True),
    (OTHER_UID, OTHER_GID, ",".join(map(str, range(100, 600))) + ",%d" % ALLOWED_GID, True),
    (OTHER_UID, OTHER_GID, ",".join(map(str, range(100, 600))), False),
    (0, OTHER_GID, "", True),
])
def test_who_may_connect_locally(start, uid, gid, extra, allowed):
    server = start("--group", ALLOWED_GID)
    server.dir.chmod(0o755)
    before = server.stats()
    got = subprocess.run(["/usr/bin/python3", "-c", PROBE, str(uid), str(gid), extra, server.path],
                         stdout=subprocess.PIPE, check=True).stdout
    assert got[3] == SETTINGS
    # One who is turned away is told so.
    assert (b"may not connect" in got) == (not allowed)
    assert server.stats()["refused"] == before["refused"] + (not allowed)
    server.settled()


# What one client may take up, over all its connections. "uid 0" has no share but the whole.

AS_SOMEBODY = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
sys.path.insert(0, sys.argv[3])
os.environ["POSTCOPYD_BUILD"] = sys.argv[4]
from types import SimpleNamespace
import test_grpc_server as t
server = SimpleNamespace(path=sys.argv[2])
exec(sys.argv[5])
sys.stdin.read()
"""


@contextlib.contextmanager
def somebody(server, code):
    """A process of another user that does this, and then keeps what it has. Returns what it says."""
    server.dir.chmod(0o755)
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", AS_SOMEBODY, str(ALLOWED_GID), server.path,
         os.path.dirname(__file__), harness.BUILD, code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    try:
        yield harness.Lines(process.stdout.fileno(), "somebody").next(
            time.monotonic() + 2 * harness.DEADLINE_S)
    finally:
        process.stdin.close()
        process.wait(harness.DEADLINE_S)
        process.stdout.close()


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")


@needs_root
def test_connections_of_one_user_leave_room(start):
    """1,024 connections that said nothing kept everybody else out, root too."""
    server = start("--group", ALLOWED_GID)
    many = """
raws = [t.Raw(server) for _ in range(1100)]
for raw in raws:
    raw.sock.settimeout(3)
told = [raw for raw in raws[-50:] if (raw.end() or (0, b""))[1].startswith(b"too many connections")]
print(len(told), flush=True)
"""
    with somebody(server, "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))"
                  + many) as told:
        assert told == "50"
        harness.eventually(lambda: server.stats()["connections"] <= 256 + 1,
                           "those that were too many are gone")
    assert "too many connections of one client" in server.log()


@needs_root
def test_requests_of_one_user_leave_room(start):
    """64 MiB of requests without an end, and nobody's smallest call was taken any more."""
    server = start("--group", ALLOWED_GID)
    with somebody(server, """
import threading
raws = [t.Raw(server) for _ in range(20)]
body = t.message(b"x" * (4 << 20))[:3 << 20]
threads = [threading.Thread(target=t.push, args=(raw, body)) for raw in raws]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("pushed", flush=True)
""") as said:
        assert said == "pushed"
        with server.channel() as channel:
            assert len(call(channel, "Echo", b"x" * MIB)) == MIB


@needs_root
def test_answers_that_one_user_does_not_read_are_bounded(start):
    """16 MiB was the bound of each stream, and there are 256 on each of 1,024 connections."""
    server = start("--group", ALLOWED_GID)
    before = server.stats()
    with somebody(server, """
def fill():
    raw = t.Raw(server, preface=False)
    # A window of nothing: what is answered stays where it is.
    raw.send(t.PREFACE + t.frame(t.SETTINGS, 0, 0, b"\\0\\4\\0\\0\\0\\0"))
    for stream_id in range(1, 41, 2):
        raw.send(t.frame(t.HEADERS, t.END_HEADERS, stream_id, t.headers(b"/test.Echo/Chat")))
        for _ in range(8):
            status = t.push_message(raw, stream_id, t.message(b"x" * ((256 << 10) - 5)))
            if status:
                return raw, status
filled = [fill() for _ in range(4)]
print(*[status for _, status in filled], flush=True)
""") as said:
        assert said == "8 8 8 8"  # RESOURCE_EXHAUSTED
        server.check_memory(before, 48)
    server.settled()


def push_message(raw, stream_id, body):
    """One request of a stream, as fast as the windows let it. Returns the status where it is
    refused."""
    for at in range(0, len(body), 16384):
        raw.send(frame(DATA, 0, stream_id, body[at:at + 16384]))
        credit = 0
        while at % 32768 and credit < 2:
            kind, _, _, fields = raw.next()
            if kind == HEADERS and b"grpc-status" in fields:
                return fields[b"grpc-status"].decode()
            credit += kind == WINDOW
    return None
