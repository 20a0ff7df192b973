# SPDX-License-Identifier: Apache-2.0
"""A source that lies: a destination daemon never lets a wrong page into its guest, says
what was wrong, and serves its other migrations on."""
import errno
import os
import re
import socket
import struct

import pytest

import harness
import pyvmm
import stream
from stream import FakeSource, UNIT

SIZE = 1 << 20

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


class Pulling:
    """A destination daemon with an attached empty guest, and what it is told to pull from."""

    def __init__(self, host):
        self.host = host
        self.daemon = host.daemon("destination", allow=["postcopy:source"])
        self.content = pyvmm.guest_content(SIZE)

    def start(self, source, migration_id="vm1", loads=True, **options):
        self.host.later(source.close)
        self.daemon.prepare_destination(migration_id, source.address, **options)
        vmm = pyvmm.DestinationVmm(self.daemon, migration_id, SIZE)
        self.host.later(vmm.close)
        self.daemon.call("Start", id=migration_id)
        if loads:
            assert vmm.load() == source.vmstate
        return vmm

    def serves_another(self):
        """All is well for a migration whose source tells the truth."""
        source = FakeSource(self.host.pki.source, self.content)
        vmm = self.start(source, "another")
        vmm.expect(pyvmm.COMPLETE)
        assert os.pread(vmm.memory_fd, SIZE, 0) == self.content
        self.daemon.wait_for_state("another", "complete")


@pytest.fixture
def pulling(host):
    return Pulling(host)


def test_honest_source_fills_the_whole_guest(pulling):
    pulling.serves_another()


def test_each_page_is_asked_for_once(pulling):
    source = FakeSource(pulling.host.pki.source, pulling.content)
    vmm = pulling.start(source)
    vmm.expect(pyvmm.COMPLETE)
    asked = [(region, first + bit) for region, first, mask in source.asked
             for bit in range(64) if mask >> bit & 1]
    assert sorted(asked) == [(0, unit) for unit in range(SIZE // UNIT)]


def test_fault_is_answered_while_nothing_else_is_asked_for(pulling):
    source = FakeSource(pulling.host.pki.source, pulling.content)
    vmm = pulling.start(source, bulk=False)
    thread, page = vmm.touch(100)
    thread.join(harness.DEADLINE_S)
    assert not thread.is_alive()
    assert page.raw == pulling.content[100 * UNIT:101 * UNIT]
    assert all(first == 64 and mask >> 36 & 1 for _, first, mask in source.asked[:1])


def lie_once(lie):
    """Answers the third GET with @lie's bytes, all others rightly."""
    told = []

    def answer(source, region, first_unit, mask, request_id):
        told.append(1)
        if len(told) == 3:
            return lie(source, region, first_unit, mask, request_id)
        return source.right_answer(region, first_unit, mask, request_id)
    return answer


WRONG = b"\xee" * UNIT


def units(mask):
    return bin(mask).count("1")


LIES = {
    "pages never asked for": lambda s, r, f, m, i: stream.pages(
        r, (f + 64) % (SIZE // UNIT), m, 0, WRONG * units(m), i),
    "more pages than asked for": lambda s, r, f, m, i: (
        stream.pages(r, f, stream.FULL_MASK, 0, WRONG * 64, i) if m != stream.FULL_MASK else
        stream.pages(r, f, m & ~1, 0, WRONG * 63, i)),
    "fewer pages than asked for": lambda s, r, f, m, i: stream.pages(
        r, f, m & -m, 0, WRONG, i) if units(m) > 1 else stream.pages(r, f, 0, 0, b"", i),
    "an answer twice": lambda s, r, f, m, i: s.right_answer(r, f, m, i) + stream.pages(
        r, f, m, 0, WRONG * units(m), i),
    "a region that is not there": lambda s, r, f, m, i: stream.pages(
        7, f, m, 0, WRONG * units(m), i),
    "units outside of the region": lambda s, r, f, m, i: stream.pages(
        r, SIZE // UNIT, m, 0, WRONG * units(m), i),
    "units that wrap": lambda s, r, f, m, i: stream.pages(
        r, (1 << 64) - 64, m, 0, WRONG * units(m), i),
    "units both zero and not": lambda s, r, f, m, i: stream.pages(
        r, f, m, m, WRONG * units(m), i),
    "an answer to another request": lambda s, r, f, m, i: stream.pages(
        r, f, m, 0, WRONG * units(m), i + 1000),
    "too few bytes": lambda s, r, f, m, i: stream.frame(stream.PAGES, struct.pack(
        "<IIQQQQ", r, 0, f, m, 0, 0) + WRONG * (units(m) - 1), i),
    "too many bytes": lambda s, r, f, m, i: stream.frame(stream.PAGES, struct.pack(
        "<IIQQQQ", r, 0, f, m, 0, 0) + WRONG * (units(m) + 1), i),
    "a frame of 4 GiB": lambda s, r, f, m, i: stream.frame(
        stream.PAGES, b"", i, length=0xFFFFFFFF),
    "an unknown frame": lambda s, r, f, m, i: stream.frame(99),
    "a destination's frame": lambda s, r, f, m, i: stream.get(r, f, m, i),
    "garbage": lambda s, r, f, m, i: b"\xa5" * 4096,
    "a reserved field": lambda s, r, f, m, i: stream.frame(stream.PAGES, struct.pack(
        "<IIQQQQ", r, 1, f, m, 0, 0) + WRONG * units(m), i),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_about_pages_is_named_and_never_reaches_the_guest(pulling, lie):
    source = FakeSource(pulling.host.pki.source, pulling.content, lie_once(LIES[lie]))
    # One stream: behind the third answer there are always others, so that it is read on.
    vmm = pulling.start(source, streams=1)
    harness.eventually(lambda: told_of_a_lie(pulling.daemon, "vm1"), "the lie is named")
    assert vmm.wrong_pages(pulling.content) == []
    pulling.serves_another()
    assert vmm.wrong_pages(pulling.content) == []


def told_of_a_lie(daemon, migration_id):
    """One line of the log names the migration and what its source sent."""
    return [line for line in daemon.log().splitlines() if migration_id in line and
            re.search(r"PAGES|GET|frame|request|asked|region|unit", line)]


@pytest.mark.parametrize("bytes_sent", [3, 16, 40, 5000])
def test_answer_cut_off_by_the_connection_is_asked_for_again(pulling, bytes_sent):
    """No lie, a loss: the guest waits and goes on."""
    class Cutting(FakeSource):
        def _answer(self, connection, kind, payload, request_id):
            if kind == stream.GET and len(self.asked) == 3:
                self.asked.append(struct.unpack("<I4xQQ", payload))
                connection.send(self.right_answer(*self.asked[-1], request_id)[:bytes_sent])
                raise EOFError("cut off on purpose")
            super()._answer(connection, kind, payload, request_id)

    source = Cutting(pulling.host.pki.source, pulling.content)
    vmm = pulling.start(source)
    vmm.expect(pyvmm.COMPLETE)
    assert vmm.wrong_pages(pulling.content) == []
    assert os.pread(vmm.memory_fd, SIZE, 0) == pulling.content


BAD_REPLIES = {
    "another size": [stream.region(0, 2 * SIZE)],
    "another address": [stream.region(SIZE, SIZE)],
    "another number of regions": [stream.region(0, SIZE), stream.region(SIZE, SIZE)],
    "a region that wraps": [stream.region((1 << 64) - UNIT, SIZE)],
    "a size of 0": [stream.region(0, 0)],
}


@pytest.mark.parametrize("case", BAD_REPLIES)
def test_source_with_other_memory_fails_before_switchover(pulling, case):
    source = FakeSource(pulling.host.pki.source, pulling.content, reply_regions=BAD_REPLIES[case])
    vmm = pulling.start(source, loads=False)
    assert "region" in pulling.daemon.wait_for_state("vm1", "failed")["reason"]
    _, text = vmm.expect_failure()
    assert "region" in text
    pulling.serves_another()


@pytest.mark.parametrize("identity, named", [("forged_source", "certificate"),
                                             ("stranger", "postcopy:stranger")])
def test_source_that_is_not_who_it_should_be_fails_with_the_reason(pulling, identity, named):
    source = FakeSource(getattr(pulling.host.pki, identity), pulling.content)
    vmm = pulling.start(source, loads=False)
    assert named in pulling.daemon.wait_for_state("vm1", "failed")["reason"]
    vmm.expect_failure()
    pulling.serves_another()


def test_the_token_is_never_said(pulling):
    """It was the first thing that whoever answered was told: with it one has the guest."""
    class Listening(FakeSource):
        heard = b""

        def _answer(self, connection, kind, payload, request_id):
            self.heard += payload
            super()._answer(connection, kind, payload, request_id)

    source = Listening(pulling.host.pki.source, pulling.content)
    pulling.start(source).expect(pyvmm.COMPLETE)
    assert b"vm1" in source.heard
    assert bytes.fromhex(harness.TOKEN) not in source.heard


def test_source_that_does_not_know_the_token_is_none(pulling):
    """Any daemon with an allowed certificate was believed, and its memory taken for the guest's."""
    source = FakeSource(pulling.host.pki.source, pulling.content, token="11" * 32)
    vmm = pulling.start(source, loads=False)
    assert "has not proven" in pulling.daemon.wait_for_state("vm1", "failed")["reason"]
    vmm.expect_failure()
    assert not source.asked
    pulling.serves_another()


def test_proof_is_of_no_use_to_who_stands_between(pulling):
    """A daemon with allowed certificates passes on what both say: the source let it in, and it read
    the guest. So it would with proofs that are not of the connection they are said on."""
    real = pulling.host.daemon("source", allow=["postcopy:destination"])
    real.prepare_source("vm1")
    pulling.host.later(pyvmm.SourceVmm(real, "vm1", pulling.content).close)
    heard = []

    class Between(FakeSource):
        def _answer(self, connection, kind, payload, request_id):
            onward = stream.dial(real.port, pulling.host.pki.destination)
            onward.send(stream.frame(kind, payload))
            heard.append(onward.receive())
            onward.close()
            connection.send(stream.frame(*heard[-1][:2]))

    vmm = pulling.start(Between(pulling.host.pki.source, pulling.content), loads=False)
    assert "wrong token" in pulling.daemon.wait_for_state("vm1", "failed")["reason"]
    assert heard[0][0] == stream.ERROR
    vmm.expect_failure()
    real.wait_for_log("wrong token")


def test_word_of_a_stranger_ends_no_guest(pulling):
    """Whoever answered at the source's address could say that the guest runs on there: the one that
    ran here was ended, by its own daemon. It is the source's own word, or none."""
    class Turncoat(FakeSource):
        lies = 0

        def _answer(self, connection, kind, payload, request_id):
            if not self.lies:
                super()._answer(connection, kind, payload, request_id)
                return
            if kind == stream.HELLO and stream.read_fields(payload)[2][0] == stream.CONTROL:
                self.lies += 1
            connection.send(stream.frame(stream.ERROR, struct.pack(
                "<I", errno.EKEYREVOKED) + b"it runs on at the source") if kind == stream.HELLO
                else b"")
            raise EOFError("cut off on purpose")

    source = Turncoat(pulling.host.pki.source, pulling.content)
    vmm = pulling.start(source, bulk=False)
    vmm.touch(0)[0].join(harness.DEADLINE_S)
    source.lies = 1
    harness.eventually(lambda: source.lies > 2, "it was told so over two connections")
    source.lies = 0
    thread, page = vmm.touch(SIZE // UNIT - 1)
    thread.join(harness.DEADLINE_S)
    assert not thread.is_alive() and page.raw == pulling.content[-UNIT:]
    pulling.daemon.call("SetLimits", id="vm1", bulk=True)
    vmm.expect(pyvmm.COMPLETE)


def test_source_of_an_older_version_is_named_with_both(pulling):
    class Older(FakeSource):
        def prove(self, connection, hello):
            text = "page stream version %d from the destination, version 2 at the source: upgrade " \
                "the source's postcopyd" % hello[1][0]
            connection.send(stream.frame(stream.ERROR, struct.pack("<I", errno.EPROTO) +
                                         text.encode()))
            raise EOFError("as version 2 does")

    vmm = pulling.start(Older(pulling.host.pki.source, pulling.content), loads=False)
    reason = pulling.daemon.wait_for_state("vm1", "failed")["reason"]
    assert "version 3" in reason and "version 2" in reason and "upgrade the source" in reason
    vmm.expect_failure()


def test_source_that_does_not_listen_fails_with_its_address(pulling):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = "127.0.0.1:%d" % closed.getsockname()[1]
    pulling.daemon.prepare_destination("vm1", address)
    vmm = pyvmm.DestinationVmm(pulling.daemon, "vm1", SIZE)
    pulling.host.later(vmm.close)
    pulling.daemon.call("Start", id="vm1")
    reason = pulling.daemon.wait_for_state("vm1", "failed")["reason"]
    assert address in reason and "refused" in reason
    vmm.expect_failure()


@pytest.mark.parametrize("length", [0, 65 << 20, (1 << 64) - 1])
def test_vmstate_of_an_impossible_length_is_refused(pulling, length):
    class Boasting(FakeSource):
        def _answer(self, connection, kind, payload, request_id):
            if kind == stream.SWITCHOVER:
                connection.send(stream.frame(stream.VMSTATE, struct.pack("<QQQ", length, 1, 2)))
            else:
                super()._answer(connection, kind, payload, request_id)

    source = Boasting(pulling.host.pki.source, pulling.content)
    pulling.start(source, loads=False)
    harness.eventually(lambda: re.search(r"vm1.*(VMSTATE|vmstate)", pulling.daemon.log()),
                       "the vmstate is named")
    pulling.serves_another()


@pytest.mark.parametrize("takes_it", [None, 1], ids=["older source", "takes it"])
def test_abort_says_why_to_a_source_that_takes_it(pulling, takes_it):
    """To an older one a text would be a frame of a wrong length: its guest would stand still."""
    source = FakeSource(pulling.host.pki.source, pulling.content)
    source.abort_text = takes_it
    vmm = pulling.start(source, loads=False)
    vmm.expect(pyvmm.VMSTATE)
    vmm.send(pyvmm.packet(pyvmm.ERROR, struct.pack("<II", errno.ENODEV, 14) + b"no such device"))
    reason = pulling.daemon.wait_for_state("vm1", "failed")["reason"]
    assert "no such device" in reason
    harness.eventually(lambda: source.aborts, "ABORT is said")
    assert source.aborts[0] == (reason if takes_it else "")
