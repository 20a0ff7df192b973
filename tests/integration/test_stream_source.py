# SPDX-License-Identifier: Apache-2.0
"""What a confused or hostile destination sends to a source daemon: refused with a reason,
while the migration that is served goes on for the right one."""
import ctypes
import errno
import os
import pathlib
import re
import socket
import ssl
import struct
import threading

import pytest

import pyvmm
import stream
from harness import DEADLINE_S, TOKEN, sanitizer
from stream import UNIT

SIZE = 1 << 20
WORDS = SIZE // UNIT // stream.WORD_UNITS


class Served:
    """A source daemon with one attached guest of known content."""

    def __init__(self, host):
        self.host = host
        self.pki = host.pki
        self.daemon = host.daemon("source", allow=["postcopy:destination"])
        self.daemon.prepare_source("vm1")
        self.content = pyvmm.guest_content(SIZE)
        self.vmm = pyvmm.SourceVmm(self.daemon, "vm1", self.content)
        host.later(self.vmm.close)

    def dial(self, role=stream.CONTROL, **fields):
        if role == stream.CONTROL:
            fields.setdefault("regions", [stream.region(0, SIZE)])
        fields.setdefault("migration_id", "vm1")
        return stream.dial_stream(self.daemon.port, self.pki.destination, role, **fields)

    def switch_over(self):
        """Pauses the guest as a destination would. Returns CONTROL and the epoch."""
        control, reply = self.dial()
        pauses = threading.Thread(target=self.vmm.pause)
        pauses.start()
        control.send(stream.frame(stream.SWITCHOVER))
        kind, payload, _ = control.receive()
        pauses.join(DEADLINE_S)
        assert kind == stream.VMSTATE
        length = struct.unpack_from("<Q", payload)[0]
        vmstate = b""
        while len(vmstate) < length:
            kind, payload, _ = control.receive()
            assert kind == stream.VMSTATE_DATA
            vmstate += payload
        assert vmstate == self.vmm.vmstate
        return control, reply[2][0]

    def serves_right_pages(self, epoch):
        """A well-behaved destination gets all of the guest."""
        connection, _ = self.dial(stream.URGENT, epoch=epoch)
        for word in range(WORDS):
            connection.send(stream.get(0, word * 64, stream.FULL_MASK, word))
            kind, payload, request_id = connection.receive()
            assert (kind, request_id) == (stream.PAGES, word)
            _, _, first, data, zero, _ = struct.unpack_from("<IIQQQQ", payload)
            assert (first, data | zero, data & zero) == (word * 64, stream.FULL_MASK, 0)
            assert payload[stream.PAGES_HEAD:] == self.content[word * 64 * UNIT:(word + 1) * 64 * UNIT]
        connection.close()

    def still_opens(self):
        connection, _ = self.dial()
        connection.close()


@pytest.fixture
def served(host):
    return Served(host)


def ends(raw):
    """The daemon hangs up on this socket, whatever it says before."""
    raw.settimeout(DEADLINE_S)
    try:
        while raw.recv(65536):
            pass
    except ConnectionError:
        pass


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, b"\x16\x03\x01\xff\xff",
                                     bytes(range(256)) * 16], ids=["http", "zeroes", "record", "all"])
def test_garbage_before_tls_is_hung_up_on_and_logged(served, garbage):
    with socket.create_connection(("127.0.0.1", served.daemon.port)) as raw:
        raw.sendall(garbage)
        raw.shutdown(socket.SHUT_WR)
        ends(raw)
    served.daemon.wait_for_log("TLS")
    served.still_opens()


def test_silent_connection_does_not_keep_others_out(served):
    silent = [socket.create_connection(("127.0.0.1", served.daemon.port)) for _ in range(8)]
    served.still_opens()
    for raw in silent:
        raw.close()


def assert_tls_refused(served, identity):
    """With TLS 1.3 a client hears of a refused certificate when it first reads."""
    with pytest.raises((ssl.SSLError, EOFError, ConnectionError)):
        connection = stream.dial(served.daemon.port, identity)
        connection.send(stream.frame(stream.HELLO, stream.hello(
            stream.CONTROL, "vm1", regions=[stream.region(0, SIZE)])))
        connection.receive()
    served.still_opens()


def test_client_without_a_certificate_is_refused(served):
    assert_tls_refused(served, None)
    served.daemon.wait_for_log("certificate")


def thread_times(daemon):
    """What each of its threads has run, in ns, by (number, name)."""
    times = {}
    for task in pathlib.Path("/proc/%d/task" % daemon.pid).iterdir():
        ran_ns = int((task / "schedstat").read_text().split()[0])
        times[task.name, (task / "comm").read_text().strip()] = ran_ns
    return times


def test_handshakes_of_strangers_are_one_threads(served):
    """However many dial without a pause: a machine's other CPUs are its guests'."""
    before = thread_times(served.daemon)

    def knock():
        for _ in range(25):
            try:
                stream.dial(served.daemon.port, None).receive()
            except (OSError, EOFError):
                pass

    knocking = [threading.Thread(target=knock) for _ in range(4)]
    for thread in knocking:
        thread.start()
    for thread in knocking:
        thread.join(DEADLINE_S)
    after = thread_times(served.daemon)
    assert after.keys() == before.keys()
    ran = {name: after[number, name] - before[number, name] for number, name in after}
    assert ran["accept"] > 9 * (sum(ran.values()) - ran["accept"]), ran


def test_certificate_of_another_authority_is_refused(served):
    assert_tls_refused(served, served.pki.forged)
    served.daemon.wait_for_log("certificate")


def test_expired_certificate_is_refused(served):
    assert_tls_refused(served, served.pki.expired)
    served.daemon.wait_for_log("expired")


def test_name_that_is_not_allowed_is_refused_and_named(served):
    assert_tls_refused(served, served.pki.stranger)
    served.daemon.wait_for_log("postcopy:stranger")


def test_certificate_without_a_name_is_refused(served):
    assert_tls_refused(served, served.pki.nameless)
    served.daemon.wait_for_log("no SAN")


def test_unknown_migration_and_wrong_token_look_the_same_to_a_guesser(served):
    texts = []
    for fields in (dict(migration_id="vm2"), dict(migration_id="vm1", token="00" * 32)):
        connection = stream.dial(served.daemon.port, served.pki.destination)
        connection.say_hello(stream.CONTROL, regions=[stream.region(0, SIZE)], **fields)
        texts.append(connection.receive_error().replace(fields["migration_id"], "ID"))
        connection.close()
    assert texts[0] == texts[1]


def test_tls_1_2_is_refused(served):
    context = stream.tls_context(ssl.PROTOCOL_TLS_CLIENT, served.pki.destination)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", served.daemon.port)) as raw:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(raw)
    served.still_opens()


def test_other_application_protocol_is_refused(served):
    context = stream.tls_context(ssl.PROTOCOL_TLS_CLIENT, served.pki.destination)
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", served.daemon.port)) as raw:
        with pytest.raises((ssl.SSLError, EOFError, ConnectionError)):
            connection = stream.Connection(context.wrap_socket(raw))
            connection.receive()
    served.still_opens()


BAD_HELLOS = {
    "another migration's token": (dict(token="00" * 32), "token|migration"),
    "a proof that is too short": (dict(proof=bytes(31)), "proof"),
    "a proof of nothing": (dict(proof=bytes(32)), "token"),
    "an unknown migration": (dict(migration_id="vm2"), "migration|token"),
    "an empty id": (dict(migration_id=""), "migration id"),
    "an id of 65 bytes": (dict(migration_id="x" * 65), "migration id"),
    "an older version": (dict(version=2), "version 2 from .* version 3 at .*upgrade the destination"),
    "a newer version": (dict(version=4), "version 4 from .* version 3 at .*upgrade the source"),
    "an unknown role": (dict(role=9), "role"),
    "no role": (dict(role=0), "role"),
    "regions of another size": (dict(regions=[stream.region(0, 2 * SIZE)]), "region"),
    "regions at another address": (dict(regions=[stream.region(SIZE, SIZE)]), "region"),
    "regions that overlap": (dict(regions=[stream.region(0, SIZE)] * 2), "region|overlap"),
    "a region that wraps": (dict(regions=[stream.region((1 << 64) - UNIT, SIZE)]), "region"),
    "bulk with a wrong epoch": (dict(role=stream.BULK, epoch=1), "anew"),
    "urgent with a wrong epoch": (dict(role=stream.URGENT, epoch=1), "anew"),
}


@pytest.mark.parametrize("case", BAD_HELLOS)
def test_bad_hello_is_refused_with_the_reason(served, case):
    changed, named = BAD_HELLOS[case]
    fields = dict(role=stream.CONTROL, migration_id="vm1", regions=[stream.region(0, SIZE)])
    fields.update(changed)
    if fields["role"] != stream.CONTROL:
        fields["regions"] = []
    connection = stream.dial(served.daemon.port, served.pki.destination)
    connection.say_hello(**fields)
    text = connection.receive_error()
    connection.close()
    assert re.search(named, text), text
    assert TOKEN not in text
    served.still_opens()


BAD_FIRST_FRAMES = {
    "garbage for a HELLO": stream.frame(stream.HELLO, b"\xff" * 40),
    "an oversized HELLO": stream.frame(stream.HELLO, length=32769),
    "a HELLO of 4 GiB": stream.frame(stream.HELLO, length=0xFFFFFFFF),
    "GET before HELLO": stream.get(0, 0, 1),
    "PAGES before HELLO": stream.pages(0, 0, 0, 1, b""),
    "an unknown frame": stream.frame(200),
    "frame type 0": stream.frame(0),
    "flags": stream.frame(stream.HELLO, stream.hello(stream.CONTROL, "vm1"), flags=1),
}


@pytest.mark.parametrize("case", BAD_FIRST_FRAMES)
def test_bad_first_frame_is_refused(served, case):
    connection = stream.dial(served.daemon.port, served.pki.destination)
    connection.send(BAD_FIRST_FRAMES[case])
    assert connection.receive_error()
    connection.close()
    served.still_opens()


BAD_GETS = {
    "an unknown region": stream.get(1, 0, 1),
    "region 2^32-1": stream.get(0xFFFFFFFF, 0, 1),
    "units beyond the region": stream.get(0, SIZE // UNIT, 1),
    "units that wrap": stream.get(0, (1 << 64) - 64, 1),
    "a unit that is no multiple of 64": stream.get(0, 3, 1),
    "nothing": stream.get(0, 0, 0),
    "a reserved field": stream.frame(stream.GET, struct.pack("<IIQQ", 0, 1, 0, 1)),
    "a GET that is too long": stream.frame(stream.GET, bytes(25)),
    "a GET that is too short": stream.frame(stream.GET, bytes(23)),
    "an oversized frame": stream.frame(stream.GET, length=0xFFFFFFFF),
    "a source's frame": stream.pages(0, 0, 0, 1, b""),
    "a second HELLO": stream.frame(stream.HELLO, stream.hello(stream.BULK, "vm1")),
    "SWITCHOVER on a page connection": stream.frame(stream.SWITCHOVER),
    "garbage": b"\xa5" * 64,
}


@pytest.mark.parametrize("case", BAD_GETS)
def test_bad_request_for_pages_is_refused_and_the_rest_served(served, case):
    control, epoch = served.switch_over()
    connection, _ = served.dial(stream.BULK, epoch=epoch)
    connection.send(BAD_GETS[case])
    assert connection.receive_error()
    connection.close()
    served.serves_right_pages(epoch)
    control.close()


def test_get_before_the_guest_is_paused_is_refused(served):
    control, reply = served.dial()
    connection, _ = served.dial(stream.URGENT, epoch=reply[2][0])
    connection.send(stream.get(0, 0, 1))
    assert "paused" in connection.receive_error()
    connection.close()
    control.close()
    served.still_opens()


def test_truncated_get_and_hang_up_leave_the_others_served(served):
    control, epoch = served.switch_over()
    connection, _ = served.dial(stream.BULK, epoch=epoch)
    connection.send(stream.get(0, 0, 1)[:20])
    connection.close()
    served.serves_right_pages(epoch)
    control.close()


def test_client_that_asks_and_does_not_read_stops_only_itself(served):
    control, epoch = served.switch_over()
    glutton, _ = served.dial(stream.BULK, epoch=epoch)
    before = served.daemon.resources()["rss_kib"]
    for request in range(2000):
        glutton.send(stream.get(0, request % WORDS * 64, stream.FULL_MASK, request))
    served.serves_right_pages(epoch)
    assert served.daemon.resources()["rss_kib"] < before + 65536
    glutton.close()
    control.close()


def test_zero_pages_travel_as_a_bit(host):
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    content = pyvmm.guest_content(UNIT) + bytes(3 * UNIT) + pyvmm.guest_content(60 * UNIT)
    served = Served.__new__(Served)
    served.host, served.pki, served.daemon, served.content = host, host.pki, daemon, content
    served.vmm = pyvmm.SourceVmm(daemon, "vm1", content)
    host.later(served.vmm.close)
    control, reply = served.dial(regions=[stream.region(0, len(content))])
    pauses = threading.Thread(target=served.vmm.pause)
    pauses.start()
    control.send(stream.frame(stream.SWITCHOVER))
    assert control.receive()[0] == stream.VMSTATE
    pauses.join(DEADLINE_S)
    connection, _ = served.dial(stream.URGENT, epoch=reply[2][0])
    connection.send(stream.get(0, 0, 0x1F))
    _, payload, _ = connection.receive()
    assert struct.unpack_from("<IIQQQQ", payload)[3:] == (0x11, 0x0E, 0)
    assert payload[stream.PAGES_HEAD:] == content[:UNIT] + content[4 * UNIT:5 * UNIT]
    connection.close()
    control.close()


def test_second_control_connection_cannot_take_a_running_migration_over(served):
    control, epoch = served.switch_over()
    other = stream.dial(served.daemon.port, served.pki.destination)
    other.say_hello(stream.CONTROL, "vm1", token="11" * 32, regions=[stream.region(0, SIZE)])
    other.receive_error()
    other.close()
    served.serves_right_pages(epoch)
    control.close()


def test_abort_resumes_the_guest_on_the_source(served):
    control, _ = served.switch_over()
    control.send(stream.frame(stream.ABORT))
    assert control.receive()[0] == stream.ABORT_ACK
    served.vmm.expect(pyvmm.RESUME)
    control.close()


def test_what_abort_gives_as_its_reason_is_told_and_can_do_no_harm(served):
    control, _ = served.switch_over()
    control.send(stream.frame(stream.ABORT, b"no\n\x1b[2Jroom " + 500 * b"\xff"))
    assert control.receive()[0] == stream.ABORT_ACK
    reason = served.daemon.wait_for_state("vm1", "cancelled")["reason"]
    assert reason.startswith("the destination has given up before it ran: no??[2Jroom ")
    assert len(reason) < 320
    served.vmm.expect(pyvmm.RESUME)
    control.close()


def test_guest_is_not_resumed_after_the_destination_has_run_it(served):
    control, epoch = served.switch_over()
    control.send(stream.frame(stream.RESUMED))
    control.send(stream.frame(stream.ABORT))
    assert control.receive_error()
    control.close()
    served.serves_right_pages(epoch)


def test_complete_lets_the_vmm_go_and_is_acknowledged(served):
    control, epoch = served.switch_over()
    control.send(stream.frame(stream.RESUMED))
    served.serves_right_pages(epoch)
    control.send(stream.frame(stream.COMPLETE))
    assert control.receive()[0] == stream.COMPLETE_ACK
    served.vmm.expect(pyvmm.COMPLETE)
    assert served.daemon.wait_for_state("vm1", "complete")
    control.close()


def test_pause_that_fails_is_told_to_the_destination(served):
    control, _ = served.dial()

    def fail():
        served.vmm.expect(pyvmm.PAUSE)
        text = b"a device can't be stopped"
        served.vmm.send(pyvmm.packet(pyvmm.ERROR, struct.pack("<II", errno.EBUSY, len(text)) + text))

    fails = threading.Thread(target=fail)
    fails.start()
    control.send(stream.frame(stream.SWITCHOVER))
    assert "device can't be stopped" in control.receive_error()
    fails.join(DEADLINE_S)
    control.close()


BAD_VMSTATES = {
    "longer than its descriptor": lambda: (1 << 20, pyvmm.sealed_memfd(size=UNIT)),
    "empty": lambda: (0, pyvmm.sealed_memfd(size=UNIT)),
    "beyond the limit": lambda: (65 << 20, pyvmm.sealed_memfd(size=65 << 20)),
    "of 2^64-1 bytes": lambda: ((1 << 64) - 1, pyvmm.sealed_memfd(size=UNIT)),
    "that can still change": lambda: (UNIT, pyvmm.memfd(size=UNIT)),
    "in a directory": lambda: (UNIT, os.open("/", os.O_RDONLY)),
}


@pytest.mark.parametrize("case", BAD_VMSTATES)
def test_bad_vmstate_fails_the_switchover_with_the_reason(served, case):
    control, _ = served.dial()
    length, fd = BAD_VMSTATES[case]()

    def answer():
        served.vmm.expect(pyvmm.PAUSE)
        served.vmm.send(pyvmm.paused(length), [fd])

    answers = threading.Thread(target=answer)
    answers.start()
    control.send(stream.frame(stream.SWITCHOVER))
    assert "vmstate" in control.receive_error()
    answers.join(DEADLINE_S)
    os.close(fd)
    # Not lost: the guest is told to run on before anything else.
    served.vmm.expect(pyvmm.RESUME)
    control.close()


def ask_for(served, connection, mask):
    """Pages of the first word, which must be right."""
    connection.send(stream.get(0, 0, mask))
    kind, payload, _ = connection.receive()
    _, _, _, data, zero, _ = struct.unpack_from("<IIQQQQ", payload)
    assert (kind, data, zero) == (stream.PAGES, mask, 0)
    assert payload[stream.PAGES_HEAD:] == b"".join(
        served.content[unit * UNIT:(unit + 1) * UNIT] for unit in range(64) if mask >> unit & 1)


def test_single_pages_take_little_memory(served):
    """Hundreds of connections ask for a page here and there: a buffer for a word is not touched all
    over for that."""
    _, epoch = served.switch_over()
    connections = [served.dial(stream.BULK, epoch=epoch)[0] for _ in range(32)]
    for connection in connections:
        ask_for(served, connection, 1)
    before = served.daemon.resources()["rss_kib"]
    for connection in connections:
        for unit in range(1, 64):
            ask_for(served, connection, 1 << unit)
    grown = served.daemon.resources()["rss_kib"] - before
    for connection in connections:
        ask_for(served, connection, 0x8000000000000f01)
        connection.close()
    # 63 pages of each it would be, 8 MiB.
    if not sanitizer():
        assert grown < 2048


SYS_SCHED_GETATTR = 315


def slice_ns(tid):
    """How long a thread keeps its core when others want it (Linux 6.12; 0 before)."""
    attr = ctypes.create_string_buffer(48)
    assert not ctypes.CDLL(None).syscall(SYS_SCHED_GETATTR, tid, attr, len(attr), 0)
    return struct.unpack_from("=IIQiIQ", attr)[5]


def test_who_lets_connections_in_is_woken_at_once(served):
    """On a busy host a guest would wait for its turn in a queue of all that want to run."""
    tasks = pathlib.Path("/proc/%d/task" % served.daemon.pid)
    accept, = (int(task.name) for task in tasks.iterdir()
               if (task / "comm").read_text() == "accept\n")
    if not slice_ns(0):
        pytest.skip("this kernel has no slices of a thread's own (Linux 6.12)")
    assert slice_ns(accept) == slice_ns(served.daemon.pid) < slice_ns(0)
