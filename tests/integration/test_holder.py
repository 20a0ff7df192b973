# SPDX-License-Identifier: Apache-2.0
"""Who owns the guest: two destinations with one token, an attachment that was replaced, goodbyes that
nobody hears, and what an operator does where one side is gone for good."""
import errno
import os
import pathlib
import select
import signal
import socket
import subprocess

import pytest

import harness
import pyvmm
from harness import ControlError
from keeper import KeptDaemon
from pyvmm import PAGE
from test_fetch import Channel
from test_recover import SIZE, Pair

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))

# For how long a holder counts as there; how long a goodbye holds up its VMM.
HOLDER_SILENT_S = 10
GOODBYE_S = 30


class Second:
    """Another destination with the same id and token as the pair's."""

    def __init__(self, host, pair):
        self.daemon = host.daemon("destination", allow=["postcopy:source"])
        self.daemon.prepare_destination("vm1", pair.source.address)
        self.vmm = pyvmm.DestinationVmm(self.daemon, "vm1", SIZE)
        host.later(self.vmm.close)


def told_nothing(vmm):
    """Whether the VMM has been told nothing. What it would be told comes before our answer."""
    vmm.sock.settimeout(0.2)
    try:
        return not vmm.sock.recv(1)
    except TimeoutError:
        return True
    finally:
        vmm.sock.settimeout(harness.DEADLINE_S)


def test_second_destination_does_not_get_a_guest_that_runs(host):
    """It was answered SWITCHOVER and COMPLETE: the source let go of the memory, and the first one's
    guest stood still for good."""
    pair = Pair(host)
    pair.run()
    second = Second(host, pair)
    second.daemon.call("Start", id="vm1")
    failed = second.daemon.wait_for_state("vm1", "failed")
    holder = pair.source.call("Get", id="vm1")["holder"]
    assert holder == pair.destination.call("Get", id="vm1")["holder"] != ""
    assert "held by another destination, %s (postcopy:destination)" % holder[:8] in failed["reason"]
    code, _ = second.vmm.expect_failure()
    assert code == errno.EBUSY
    assert told_nothing(pair.source_vmm)
    pair.finish()


def test_a_warm_destinations_cancel_does_not_resume_the_source(host):
    """Its ABORT resumed the source's guest while the holder's had been loaded: two ran."""
    pair = Pair(host)
    second = Second(host, pair)
    second.daemon.call("Start", id="vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.destination.call("Start", id="vm1")
    pair.source_vmm.pause()
    pair.destination_vmm.load()
    pair.destination.wait_for_state("vm1", "postcopy")
    try:
        second.daemon.call("Cancel", id="vm1")
    except ControlError:
        # Its ping was answered before: it is not the holder.
        assert second.daemon.state("vm1") == "failed"
    assert second.daemon.wait_for_state("vm1", "cancelled", "failed")
    assert told_nothing(pair.source_vmm)
    pair.read(5)
    pair.finish()


def test_destination_that_has_lost_its_record_is_a_stranger(host):
    """A destination without a store ran a stale guest again when it was started anew."""
    pair = Pair(host)
    pair.run()
    pair.destination.kill()
    host.processes.remove(pair.destination)
    again = Second(host, pair)
    again.daemon.call("Start", id="vm1")
    assert "held by another destination" in again.daemon.wait_for_state("vm1", "failed")["reason"]
    assert pair.source.state("vm1") in ("switching", "postcopy")
    assert told_nothing(pair.source_vmm)


def test_source_guest_attached_anew_while_warming(host):
    """The control connection took the new attachment, the pull kept the old one's epoch: after
    switchover not one page ever came, and neither side had a way out."""
    pair = Pair(host)
    pair.destination.call("Start", id="vm1", switchover=False)
    # Whose answer is cut off on its way has no epoch yet, and simply begins.
    pair.destination.wait_for_log("connected, TLSv1.3")
    pair.proxy.refuse(True)
    pair.source.wait_for_state("vm1", "attached")
    pair.source_vmm.sock.close()
    pair.source.wait_for_state("vm1", "prepared")
    pair.content = pyvmm.guest_content(SIZE, seed=2)
    pair.source_vmm = pyvmm.SourceVmm(pair.source, "vm1", pair.content)
    host.later(pair.source_vmm.close)
    pair.proxy.refuse(False)
    pair.destination.wait_for_log("attached anew, start again; warming again")
    pair.destination.call("Switchover", id="vm1")
    pair.source_vmm.pause()
    pair.destination_vmm.load()
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.read(7)
    pair.finish()


def test_what_is_tried_is_told(host):
    """A source that could not be reached was tried for 30 s without a word in the state."""
    pair = Pair(host)
    pair.proxy.refuse(True)
    pair.destination.call("Start", id="vm1", switchover=False)
    harness.eventually(lambda: pair.destination.call("Get", id="vm1")["reason"].endswith(
        "; trying on"), "the state says what is met")
    pair.proxy.refuse(False)
    pair.destination.wait_for_log("connected, TLSv1.3")
    harness.eventually(lambda: not pair.destination.call("Get", id="vm1")["reason"], "and its end")


class Garbler:
    """In the place of the source: who dials it meets what no list of errors has."""

    def __init__(self, host):
        self.process = subprocess.Popen(
            ["/usr/bin/python3", "-c",
             "import socket\n"
             "s = socket.create_server(('127.0.0.1', 0))\n"
             "print(s.getsockname()[1], flush=True)\n"
             "while True:\n"
             "    c, _ = s.accept()\n"
             "    c.sendall(b'this is no TLS\\n' * 8)\n"
             "    c.close()\n"], stdout=subprocess.PIPE, text=True)
        host.later(self.end)
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_only_the_sources_word_ends_a_goodbye(host):
    """A goodbye ended with the first errno that was on no list (a prohibit route, TLS refused): the
    source's guest stood still for ever, and nobody was told."""
    pair = Pair(host)
    pair.destination.call("Start", id="vm1")
    pair.source_vmm.expect(pyvmm.PAUSE)
    source, pair.proxy.target = pair.proxy.target, Garbler(host).address
    pair.proxy.cut()
    pair.destination.call("Cancel", id="vm1")
    fd = pyvmm.sealed_memfd(pair.source_vmm.vmstate)
    pair.source_vmm.send(pyvmm.paused(len(pair.source_vmm.vmstate)), [fd])
    os.close(fd)
    harness.eventually(
        lambda: "the source has not acknowledged ABORT, its guest may stand still"
        in pair.destination.call("Get", id="vm1")["reason"], "the state says what is not heard")
    assert told_nothing(pair.source_vmm)
    pair.proxy.target = source
    pair.source_vmm.expect(pyvmm.RESUME)
    # Failed where it met this before the command.
    pair.destination.wait_for_state("vm1", "cancelled", "failed")
    harness.eventually(lambda: "acknowledged" not in pair.destination.call("Get", id="vm1")["reason"],
                       "and that it is")


def test_complete_is_said_through_whatever_fails(host):
    pair = Pair(host)
    pair.run()
    source, pair.proxy.target = pair.proxy.target, Garbler(host).address
    pair.proxy.cut()
    # The guest gives back all that is missing: no page of the source is needed.
    channel = Channel(pair.destination_vmm)
    host.later(channel.sock.close)
    channel.discard(1, 0, SIZE)
    assert channel.answer() == (1, 0)
    harness.eventually(
        lambda: "the source has not acknowledged COMPLETE"
        in pair.destination.call("Get", id="vm1")["reason"], "the state says what is not heard")
    assert told_nothing(pair.source_vmm)
    pair.proxy.target = source
    pair.source_vmm.expect(pyvmm.COMPLETE)
    pair.destination_vmm.expect(pyvmm.COMPLETE)


def test_a_source_that_is_stopped_holds_up_nobody(host):
    """Each exchange waited without end: 75 s were seen where 30 are promised."""
    pair = Pair(host)
    pair.destination.call("Start", id="vm1")
    pair.source_vmm.expect(pyvmm.PAUSE)
    os.kill(pair.source.pid, signal.SIGSTOP)
    try:
        pair.destination.call("Cancel", id="vm1")
        # Until then, and the try that was under way.
        cancelled = pair.destination.wait_for_state("vm1", "cancelled",
                                                    deadline_s=GOODBYE_S + 2 * harness.DEADLINE_S)
        assert "not acknowledged ABORT" in cancelled["reason"]
        pair.destination_vmm.expect_failure()
    finally:
        os.kill(pair.source.pid, signal.SIGCONT)
    pair.source_vmm.expect(pyvmm.RESUME)


def fence(pair, method, holder=None):
    return pair.source.call(method, id="vm1",
                            confirm_holder=holder or pair.source.call("Get", id="vm1")["holder"])


@pytest.mark.parametrize("method", ["RunOn", "Release"])
def test_fencing_wants_the_holder_named_and_gone(host, method):
    pair = Pair(host)
    with pytest.raises(ControlError) as caught:
        fence(pair, method, "0" * 32)
    assert caught.value.reason == "WRONG_STATE"
    pair.run()
    with pytest.raises(ControlError) as caught:
        fence(pair, method, "0" * 32)
    assert caught.value.reason == "CONFIRMATION"
    with pytest.raises(ControlError) as caught:
        fence(pair, method)
    assert "it is not gone" in caught.value.message
    with pytest.raises(ControlError) as caught:
        pair.destination.call(method, id="vm1", confirm_holder="0" * 32)
    assert caught.value.code == "FAILED_PRECONDITION"
    pair.finish()


def fence_when_silent(pair, method):
    def fenced():
        try:
            return fence(pair, method)
        except ControlError as error:
            assert "it is not gone" in error.message
            return None

    return harness.eventually(fenced, "the holder counts as gone",
                              deadline_s=HOLDER_SILENT_S + harness.DEADLINE_S)


def test_run_on_here_fences_the_destination(host):
    """A source whose destination never came back had no way out: it stood still for ever."""
    pair = Pair(host, kind=KeptDaemon)
    pair.run()
    pair.proxy.refuse(True)
    pair.destination.wait_for_state("vm1", "paused")
    assert fence_when_silent(pair, "RunOn")["state"] == "cancelled"
    pair.source_vmm.expect(pyvmm.RESUME)
    # Said again: nothing new.
    assert fence(pair, "RunOn")["state"] == "cancelled"
    # It outlives the daemon: the next one fences the destination that comes back.
    pair.source.crash_and_restart()
    pair.proxy.refuse(False)
    pair.destination.call("Recover", id="vm1", source_address=pair.source.address)
    failed = pair.destination.wait_for_state("vm1", "failed")
    assert "has ended at the source, where its guest stays" in failed["reason"]
    pair.destination_vmm.expect_failure()


def test_release_gives_the_guest_to_its_destination(host):
    pair = Pair(host)
    pair.run()
    pair.proxy.refuse(True)
    pair.destination.wait_for_state("vm1", "paused")
    assert fence_when_silent(pair, "Release")["state"] == "complete"
    pair.source_vmm.expect(pyvmm.COMPLETE)
    pair.proxy.refuse(False)
    # What is missing is lost, which is said, and can be dealt with.
    harness.eventually(lambda: "has let go of its guest"
                       in pair.destination.call("Get", id="vm1")["reason"], "it says so")
    assert pair.destination.state("vm1") == "paused"
    pair.destination.call("Poison", id="vm1", confirm_missing_bytes=SIZE - PAGE)
    pair.destination.wait_for_state("vm1", "failed")


def test_poison_is_refused_while_the_source_may_answer(host):
    """"paused" is what was last heard; a guest whose source was about to answer was destroyed."""
    pair = Pair(host)
    pair.run()
    pair.proxy.black_hole(True)
    pair.proxy.cut()
    pair.destination.wait_for_state("vm1", "paused")
    with pytest.raises(ControlError) as caught:
        pair.destination.call("Poison", id="vm1", confirm_missing_bytes=SIZE - PAGE)
    assert "being dialled" in caught.value.message
    pair.proxy.black_hole(False)
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.finish()


@pytest.fixture
def pids_group():
    """A cgroup that can limit threads."""
    group = None
    for root in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        group = pathlib.Path(root) / ("postcopyd-test-%d" % os.getpid())
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "pids.max").exists():
            break
        group.rmdir()
    else:
        pytest.skip("no cgroup controller \"pids\" that is ours to use")
    yield group
    # Its last process may be on its way out still.
    def removed():
        try:
            group.rmdir()
        except OSError as error:
            assert error.errno == errno.EBUSY
            return False
        return True
    harness.eventually(removed, "the cgroup is empty")


@pytest.mark.parametrize("room", range(0, 7))
def test_no_thread_is_needed_after_the_point_of_no_return(pids_group, host, room):
    """A bulk thread that could not be had killed a guest that ran already."""
    source = host.daemon("source", allow=["postcopy:destination"])
    destination = host.daemon(
        "destination", allow=["postcopy:source"],
        prefix=["sh", "-c", "echo $$ >%s/cgroup.procs; exec \"$@\"" % pids_group, "sh"])
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address, streams=4)
    content = pyvmm.guest_content(SIZE)
    source_vmm = pyvmm.SourceVmm(source, "vm1", content)
    vmm = pyvmm.DestinationVmm(destination, "vm1", SIZE)
    host.later(source_vmm.close)
    host.later(vmm.close)
    host.later(lambda: (pids_group / "pids.max").write_text("max"))
    (pids_group / "pids.max").write_text(str(int((pids_group / "pids.current").read_text()) + room))
    try:
        destination.call("Start", id="vm1")
    except ControlError as error:
        assert not room and "thread" in error.message
        assert destination.state("vm1") == "attached"
        return
    source_vmm.pause()
    kind, _, _ = source_vmm_or_destination(source_vmm, vmm)
    if kind == pyvmm.RESUME:
        assert destination.wait_for_state("vm1", "failed")["reason"].startswith("threads")
        return
    vmm.expect(pyvmm.COMPLETE)
    source_vmm.expect(pyvmm.COMPLETE)
    assert room >= 4 and os.pread(vmm.memory_fd, SIZE, 0) == content


def source_vmm_or_destination(source_vmm, vmm):
    """What comes first: the source's guest is to run on, or the destination's is given the vmstate
    (and loads it)."""
    ready, _, _ = select.select([source_vmm.sock, vmm.sock], [], [], harness.DEADLINE_S)
    if source_vmm.sock in ready:
        return source_vmm.receive()
    if vmm.sock in ready:
        first = vmm.sock.recv(8, socket.MSG_PEEK)
        if int.from_bytes(first[:2], "little") == pyvmm.VMSTATE:
            vmm.load()
            return pyvmm.VMSTATE, b"", []
    return source_vmm.receive()
