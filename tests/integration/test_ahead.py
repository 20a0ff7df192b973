# SPDX-License-Identifier: Apache-2.0
"""A vmstate comes ahead, while it is still being saved: a hint, by which nothing may become wrong."""
import fcntl
import os
import struct
import termios
import threading

import pytest

import harness
import pyvmm
import stream
from silent_fs import SilentFile
from stream import FakeSource
from test_stream_source import served  # noqa: F401

SIZE = 1 << 20
VMSTATE = bytes(range(256)) * 900

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


def say_ahead(vmm, fd, length):
    vmm.send(pyvmm.ahead(length), [fd])


def hear_ahead(control, length):
    """All of it up to there, however it is cut."""
    data = b""
    while len(data) < length:
        kind, payload, _ = control.receive()
        assert kind in (stream.VMSTATE_AHEAD, stream.PONG)
        data += payload
    assert len(data) == length
    return data


def unread(sock):
    """Bytes that the other end has not read."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def hear_vmstate(control):
    kind = stream.PONG
    while kind == stream.PONG:
        kind, payload, _ = control.receive()
    assert kind == stream.VMSTATE
    length = struct.unpack_from("<Q", payload)[0]
    data = b""
    while len(data) < length:
        kind, payload, _ = control.receive()
        assert kind == stream.VMSTATE_DATA
        data += payload
    return data


def finish_pause(vmm, vmstate):
    fd = pyvmm.sealed_memfd(vmstate)
    vmm.send(pyvmm.paused(len(vmstate)), [fd])
    os.close(fd)


def test_what_is_saved_by_now_is_sent_and_then_all_of_it(served):  # noqa: F811
    control, _ = served.dial(ahead=1)
    control.send(stream.frame(stream.SWITCHOVER))
    served.vmm.expect(pyvmm.PAUSE)
    fd = pyvmm.memfd(VMSTATE)
    say_ahead(served.vmm, fd, 5)
    assert hear_ahead(control, 5) == VMSTATE[:5]
    say_ahead(served.vmm, fd, len(VMSTATE) - 1)
    assert hear_ahead(control, len(VMSTATE) - 6) == VMSTATE[5:-1]
    finish_pause(served.vmm, VMSTATE)
    assert hear_vmstate(control) == VMSTATE
    os.close(fd)
    control.close()


def test_who_does_not_know_it_is_not_sent_it(served):  # noqa: F811
    control, _ = served.dial()
    control.send(stream.frame(stream.SWITCHOVER))
    served.vmm.expect(pyvmm.PAUSE)
    fd = pyvmm.memfd(VMSTATE)
    say_ahead(served.vmm, fd, len(VMSTATE) - 1)
    # All that it hears, until the vmstate is there, are signs of life.
    assert control.receive()[0] == stream.PONG
    finish_pause(served.vmm, VMSTATE)
    assert hear_vmstate(control) == VMSTATE
    os.close(fd)
    control.close()


USELESS = {
    "longer than its descriptor": lambda: (1 << 20, pyvmm.memfd()),
    "of 2^64-1 bytes": lambda: ((1 << 64) - 1, pyvmm.memfd(VMSTATE)),
    "in a directory": lambda: (5, os.open("/", os.O_RDONLY)),
    "of nothing": lambda: (0, pyvmm.memfd(VMSTATE)),
}


@pytest.mark.parametrize("case", USELESS)
def test_one_that_is_of_no_use_costs_nothing(served, case):  # noqa: F811
    control, _ = served.dial(ahead=1)
    control.send(stream.frame(stream.SWITCHOVER))
    served.vmm.expect(pyvmm.PAUSE)
    length, fd = USELESS[case]()
    say_ahead(served.vmm, fd, length)
    finish_pause(served.vmm, VMSTATE)
    assert hear_vmstate(control) == VMSTATE
    os.close(fd)
    control.close()


def test_file_of_a_filesystem_that_does_not_answer_hangs_nobody(served):  # noqa: F811
    """It is read by a thread that holds a lock which the loop takes."""
    directory = served.host.dir / "silent"
    control, _ = served.dial(ahead=1)
    directory.mkdir()
    silent = SilentFile(directory)
    served.host.later(silent.close)
    if silent.fd < 0:
        pytest.skip(silent.why)
    control.send(stream.frame(stream.SWITCHOVER))
    served.vmm.expect(pyvmm.PAUSE)
    say_ahead(served.vmm, silent.fd, 5)
    assert control.receive()[0] == stream.PONG
    finish_pause(served.vmm, VMSTATE)
    assert hear_vmstate(control) == VMSTATE
    control.close()
    assert set(silent.close()) <= {"flush"}


def test_it_is_no_vmstate_of_a_guest_that_is_not_paused(served):  # noqa: F811
    """Nobody has asked for one."""
    control, _ = served.dial(ahead=1)
    fd = pyvmm.memfd(VMSTATE)
    say_ahead(served.vmm, fd, 5)
    # The daemon has read it before anybody asks.
    harness.eventually(lambda: not unread(served.vmm.sock), "the daemon reads its VMM's words")
    control.send(stream.frame(stream.SWITCHOVER))
    served.vmm.expect(pyvmm.PAUSE)
    finish_pause(served.vmm, VMSTATE)
    assert hear_vmstate(control) == VMSTATE
    os.close(fd)
    control.close()


class AheadSource(FakeSource):
    """Sends @pieces ahead to who takes them, once, and waits for .go before the vmstate."""

    def __init__(self, *args, pieces=(), **options):
        self.pieces = list(pieces)
        self.go = threading.Event()
        self.takers, self.switchovers = [], 0
        super().__init__(*args, **options)

    def _answer(self, connection, kind, payload, request_id):
        if kind == stream.HELLO:
            self.takers.append(stream.read_fields(payload).get(10, [0])[0])
        if kind == stream.SWITCHOVER:
            self.switchovers += 1
            while self.pieces:
                connection.send(stream.frame(stream.VMSTATE_AHEAD, self.pieces.pop(0)))
            assert self.go.wait(harness.DEADLINE_S)
        super()._answer(connection, kind, payload, request_id)


class Destination:
    def __init__(self, host, pieces, **options):
        self.daemon = host.daemon("destination", allow=["postcopy:source"])
        self.content = pyvmm.guest_content(SIZE)
        self.source = AheadSource(host.pki.source, self.content, pieces=pieces, vmstate=VMSTATE, **options)
        host.later(self.source.close)
        host.later(self.source.go.set)
        self.daemon.prepare_destination("vm1", self.source.address)
        self.vmm = pyvmm.DestinationVmm(self.daemon, "vm1", SIZE)
        host.later(self.vmm.close)
        self.daemon.call("Start", id="vm1")

    def hear_ahead(self, length):
        """Until so much of it is there. Returns its descriptor."""
        while True:
            payload, [fd] = self.vmm.expect(pyvmm.VMSTATE_AHEAD)
            if struct.unpack("<Q", payload)[0] == length:
                return fd
            os.close(fd)

    def hear_vmstate(self):
        payload, [fd] = self.vmm.expect(pyvmm.VMSTATE)
        assert os.pread(fd, len(VMSTATE) + 1, 0) == VMSTATE
        assert struct.unpack("<Q", payload)[0] == len(VMSTATE)
        return fd

    def finish(self):
        self.vmm.send(pyvmm.packet(pyvmm.LOADED))
        self.vmm.send(pyvmm.packet(pyvmm.RESUMED))
        self.vmm.expect(pyvmm.COMPLETE)
        assert os.pread(self.vmm.memory_fd, SIZE, 0) == self.content
        self.daemon.wait_for_state("vm1", "complete")


def test_a_vmm_has_what_is_ahead_and_how_far_it_has_read_it(host):
    d = Destination(host, [VMSTATE[:7], VMSTATE[7:100000]])
    fd = d.hear_ahead(100000)
    assert os.read(fd, 1000) == VMSTATE[:1000]
    assert d.daemon.state("vm1") == "switching"
    os.close(fd)
    d.source.go.set()
    fd = d.hear_vmstate()
    # The same open file: who was killed meanwhile finds there how far it had come.
    assert os.lseek(fd, 0, os.SEEK_CUR) == 1000
    os.close(fd)
    d.finish()
    # Said on the control connection alone.
    assert d.source.takers[0] == 1 and d.source.switchovers == 1


OTHERS = {"another": b"x" * 100, "longer": VMSTATE + b"x"}


@pytest.mark.parametrize("what", OTHERS)
def test_what_was_ahead_is_not_what_comes(host, what):
    """It is asked for again; and that it is another is seen by its offset."""
    other = OTHERS[what]
    d = Destination(host, [other[at:at + 200000] for at in range(0, len(other), 200000)])
    fd = d.hear_ahead(len(other))
    assert os.read(fd, 50) == other[:50]
    os.close(fd)
    d.source.go.set()
    fd = d.hear_vmstate()
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    os.close(fd)
    d.finish()
    assert d.source.switchovers == 2


def test_what_is_ahead_when_it_is_cancelled_is_never_a_vmstate(host):
    d = Destination(host, [VMSTATE[:-1]])
    os.close(d.hear_ahead(len(VMSTATE) - 1))
    d.daemon.call("Cancel", id="vm1")
    d.source.go.set()
    d.vmm.expect_failure()
    d.daemon.wait_for_state("vm1", "cancelled")


def test_a_vmm_may_say_that_it_can_not_load_only_when_it_has_all_of_it(host):
    """Before that it has nothing to load; and it is told, and cut off, like any that speaks out of turn."""
    d = Destination(host, [VMSTATE[:5]])
    os.close(d.hear_ahead(5))
    d.vmm.send(pyvmm.packet(pyvmm.LOADED))
    d.vmm.expect_error()
    d.source.go.set()
    assert "the destination VMM is gone" in d.daemon.wait_for_state("vm1", "failed")["reason"]


def test_hints_that_nobody_reads_keep_no_vmstate_out(host):
    d = Destination(host, [VMSTATE[at:at + 1] for at in range(2000)])
    harness.eventually(lambda: not d.source.pieces, "all of them have been sent")
    d.source.go.set()
    d.daemon.wait_for_state("vm1", "postcopy")
    kind = pyvmm.VMSTATE_AHEAD
    while kind == pyvmm.VMSTATE_AHEAD:
        kind, _, fds = d.vmm.receive()
        for fd in fds:
            os.close(fd)
    assert kind == pyvmm.VMSTATE
    d.finish()


def test_more_ahead_than_a_vmstate_may_be_is_refused(host):
    piece = bytes(256 << 10)
    d = Destination(host, [piece] * 257)
    assert d.daemon.wait_for_state("vm1", "failed")["reason"] == \
        "vmstate of more than %d bytes, all that the destination takes: raise its --max-vmstate" % (64 << 20)
