# SPDX-License-Identifier: Apache-2.0
"""A source tells what its running guest writes: by its VMM (KVM's log, KVM's rings) and by the
kernel (write protection). The guest writes all the time; each page that counts is looked at."""
import errno
import fcntl
import os
import pathlib
import random
import signal

import pytest

import harness
import pyvmm
import stream
from keeper import KeptDaemon
from test_migrate import pytestmark as needs_kvm
from warm_destination import SYNC, TRACK, WarmDestination

SIZE = 16 << 20
UNITS = SIZE // stream.UNIT
HOWS = ("kvm", "ring", "wp")
CANT = 2  # minivmm's exit status

all_ways = pytest.mark.parametrize("how", HOWS)


class Warm:
    """A source daemon with a running guest, and a destination that is to warm."""

    def __init__(self, host, how, kind=harness.Daemon, **options):
        self.host = host
        self.daemon = host.daemon("source", allow=["postcopy:destination"], kind=kind)
        self.start("vm1", how, **options)

    def start(self, migration_id, how, workload="random", **options):
        self.id = migration_id
        self.daemon.prepare_source(migration_id)
        self.vmm = self.host.minivmm("source", self.daemon, migration_id, memory=SIZE,
                                     workload=workload, write_percent=50, dirty_log=how, **options)
        try:
            self.vmm.wait_for_event("attached", deadline_s=60)
        except harness.Failure:
            if self.vmm.popen.poll() == CANT:
                pytest.skip(self.vmm.log().strip())
            raise
        self.destination = self.dial()

    def dial(self, **options):
        destination = WarmDestination(self.daemon, self.host.pki.destination, self.id, SIZE,
                                      **options)
        self.host.later(destination.close)
        return destination

    def runs_on_unharmed(self):
        """The source guest finds all its pages right, and they are no longer watched."""
        self.vmm.wait_for_event("running-on")
        harness.eventually(lambda: not self.is_watched(), "write protection is off")
        self.vmm.popen.send_signal(signal.SIGTERM)
        result = self.vmm.wait_for_event("result", deadline_s=60)
        assert result["pages_bad"] == 0
        logging = [e["event"] for e in self.vmm.events if e["event"].startswith("logging")]
        assert not logging or logging[-1] == "logging-off"

    def is_watched(self):
        """Whether any of its mappings is write-protected by a userfaultfd."""
        smaps = pathlib.Path("/proc/%d/smaps" % self.vmm.pid).read_text()
        return any(" uw" in line for line in smaps.splitlines() if line.startswith("VmFlags:"))


def warm_up(destination, rounds=3):
    assert destination.track() == (0, "")
    harvests = []
    for _ in range(rounds):
        destination.fill()
        harvests.append(destination.sync())
    return harvests


@needs_kvm
@all_ways
@pytest.mark.parametrize("backend", ["memfd", "anon", "hugetlb", "guest_memfd"])
def test_every_page_is_what_the_harvests_promise(host, how, backend):
    warm = Warm(host, how, backend=backend, vcpus=2)
    destination = warm.destination
    assert destination.track() == (0, "")
    destination.fill()
    # A guest that writes all the time is seen to do so, and not to have written all there is.
    assert destination.sync()
    destination.fill()
    harness.eventually(destination.sync, "a harvest")
    last = destination.switch_over()
    assert last is not None and last
    assert not destination.wrong()
    if backend != "hugetlb" or how != "wp":  # of huge pages each write makes 512 dirty
        assert destination.copy, "nothing of what was copied counts"
    destination.complete()
    warm.vmm.wait_for_event("complete")
    assert not warm.is_watched()


@needs_kvm
@all_ways
def test_an_idle_guest_stays_clean(host, how):
    warm = Warm(host, how, workload="idle")
    warm_up(warm.destination)
    warm.destination.fill()
    assert len(warm.destination.sync()) < 16
    warm.destination.fill()
    last = warm.destination.switch_over()
    assert not warm.destination.wrong()
    # What the guest did not write its VMM did, stopping it: the control blocks are among it.
    assert 0x200000 // stream.UNIT in last or how == "wp"
    assert len(warm.destination.copy) > UNITS // 2
    warm.destination.abort()
    warm.runs_on_unharmed()


@needs_kvm
@all_ways
def test_a_lost_connection_ends_the_log_and_the_next_begins_anew(host, how):
    warm = Warm(host, how)
    warm_up(warm.destination, 1)
    warm.destination.close()
    harness.eventually(lambda: not warm.is_watched(), "nothing is write-protected any more")
    if how != "wp":
        warm.vmm.wait_for_event("logging-off")
    again = warm.dial()
    code, why = again.sync()
    assert code == errno.ECANCELED and "TRACK" in why
    warm_up(again, 2)
    assert again.switch_over() is not None
    assert not again.wrong() and again.copy
    again.abort()
    warm.runs_on_unharmed()


@needs_kvm
@pytest.mark.parametrize("how", ["kvm", "ring"])
def test_the_guest_does_not_stand_still_for_its_log_to_be_switched_off(host, how):
    warm = Warm(host, how)
    warm_up(warm.destination, 1)
    assert warm.destination.switch_over()
    warm.vmm.wait_for_event("paused")
    assert "logging-off" not in [e["event"] for e in warm.vmm.events]
    assert not warm.destination.wrong()
    warm.destination.abort()
    warm.runs_on_unharmed()
    assert "logging-off" in [e["event"] for e in warm.vmm.events]


@needs_kvm
@all_ways
def test_the_last_harvest_is_told_again(host, how):
    warm = Warm(host, how)
    warm_up(warm.destination, 2)
    last = warm.destination.switch_over()
    warm.destination.close()
    warm.destination.dial()
    assert warm.destination.switch_over() == last
    assert not warm.destination.wrong()
    warm.destination.complete()


@needs_kvm
@all_ways
@pytest.mark.parametrize("when", ["track", "sync", "paused", "told"])
def test_a_source_daemon_that_is_killed(host, how, when):
    """While it warms nothing counts that came before; from the pause on the harvest is kept."""
    warm = Warm(host, how, kind=KeptDaemon)
    destination = warm.destination
    warm_up(destination, 2)
    if when in ("paused", "told"):
        destination.control.send(stream.frame(stream.SWITCHOVER))
        warm.vmm.wait_for_event("paused")
        warm.daemon.wait_for_state("vm1", "switching")
    if when == "told":
        last = destination.switch_over(send=False)
    elif when == "sync":
        destination.control.send(stream.frame(SYNC))
    warm.daemon.crash()
    warm.daemon.start()
    destination.close()
    destination.where = (warm.daemon.port, host.pki.destination)
    copy = destination.copy
    destination.dial()
    if when in ("track", "sync"):
        harness.eventually(lambda: not warm.is_watched(), "nothing is write-protected any more")
        warm_up(destination, 2)
    else:
        destination.copy = copy
    again = destination.switch_over()
    assert again is not None
    assert when != "told" or again == last
    assert not destination.wrong()
    destination.abort()
    warm.runs_on_unharmed()


@needs_kvm
@all_ways
def test_the_log_is_the_last_ones_that_asked(host, how):
    """Two who know the token: what one was told the other does not know."""
    warm = Warm(host, how)
    first, second = warm.destination, warm.dial(holder=b"B" * 16)
    warm_up(first, 1)
    warm_up(second, 1)
    code, why = first.sync()
    assert code == errno.ECANCELED
    second.fill()
    second.sync()
    # What the first has copied does not count, and it hears so: VMSTATE comes alone.
    assert first.switch_over() is None
    first.abort()
    warm.runs_on_unharmed()


@needs_kvm
@all_ways
@pytest.mark.parametrize("seed", range(4))
def test_given_up_anywhere_the_source_guest_runs_on(host, how, seed):
    """At five random points of each of four: cancelled, aborted, cut, or the daemon is killed."""
    rng = random.Random(seed)
    warm = Warm(host, how, kind=KeptDaemon)
    for n in range(5):
        if n:
            warm.start("vm%d" % (n + 1), how, seed=rng.randrange(100))
        give_up(warm, rng)
        warm.runs_on_unharmed()


def give_up(warm, rng):
    destination = warm.destination
    steps = [lambda: destination.control.send(stream.frame(TRACK)), destination.reply, destination.fill,
             lambda: destination.control.send(stream.frame(SYNC)),
             lambda: destination.harvest(*destination.reply()), destination.fill, destination.sync,
             lambda: destination.control.send(stream.frame(stream.SWITCHOVER))]
    n = rng.randrange(len(steps) + 1)
    for step in steps[:n]:
        step()
    what = rng.choice(["cancel", "abort", "cut", "kill"])
    paused = n == len(steps)
    if what == "kill":
        warm.daemon.crash()
        warm.daemon.start()
    if what == "abort" or paused:
        # Whatever was on its way there does not matter: it dials anew, to say so.
        destination.close()
        destination.where = (warm.daemon.port, warm.host.pki.destination)
        destination.dial()
        destination.abort()
    elif what == "cut":
        destination.close()
        warm.daemon.wait_for_state(warm.id, "attached")
    if what == "cancel" or what == "cut" or (what == "kill" and not paused):
        try:
            warm.daemon.call("Cancel", id=warm.id)
        except harness.ControlError as error:
            assert paused and error.code == "FAILED_PRECONDITION", error
    destination.close()


@needs_kvm
def test_who_tells_nothing_is_not_warmed_for_a_reason(host):
    warm = Warm(host, "none")
    destination = warm.destination
    assert destination.track() == (errno.EOPNOTSUPP, "minivmm runs with --dirty-log none")
    code, _ = destination.sync()
    assert code == errno.ECANCELED
    with pytest.raises(AssertionError, match="not logged"):
        destination.read([0])
    assert destination.switch_over() is None
    destination.abort()
    warm.runs_on_unharmed()


class ToldVmm(pyvmm.SourceVmm):
    """It offers a log, and answers as it is told."""

    DIRTY_LOG, LOG_START, LOG_HARVEST, LOG_STOP, HARVESTED = range(15, 20)

    def offer(self, how, fds):
        self.send(pyvmm.packet(self.DIRTY_LOG, how.to_bytes(4, "little") + bytes(4)), fds)

    def harvested(self, number, code=0, text=b""):
        self.send(pyvmm.packet(self.HARVESTED, number + code.to_bytes(4, "little") +
                               len(text).to_bytes(4, "little") + text))


@pytest.fixture
def told(host):
    daemon = host.daemon("source", allow=["postcopy:destination"])
    daemon.prepare_source("vm1")
    vmm = ToldVmm(daemon, "vm1", pyvmm.guest_content(SIZE))
    host.later(vmm.close)
    return vmm


def bitmap(size=UNITS // 8 + 8, sealed=True):
    fd = pyvmm.memfd(size=size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


@pytest.mark.parametrize("how, make, why", [
    (1, lambda: [bitmap(sealed=False)], "sealed"),
    (1, lambda: [bitmap(size=8)], "8 bytes"),
    (1, lambda: [os.open("/dev/null", os.O_RDWR)], "no memfd"),
    (2, lambda: [bitmap(), bitmap()], "no userfaultfd"),
    (2, lambda: [bitmap()], "descriptors"),
    (7, list, "unknown kind"),
])
def test_a_log_that_makes_no_sense_is_refused(told, how, make, why):
    fds = make()
    told.offer(how, fds)
    _, text = told.expect_error()
    assert why in text
    for fd in fds:
        os.close(fd)


def test_a_vmm_that_fails_to_log_is_no_obstacle(host, told):
    fd = bitmap()
    told.offer(1, [fd])
    daemon = host.processes[0]
    destination = WarmDestination(daemon, host.pki.destination, "vm1", SIZE)
    host.later(destination.close)
    destination.control.send(stream.frame(TRACK))
    number, _ = told.expect(told.LOG_START)
    told.harvested(number, errno.ENOSPC, b"no room for a log")
    code, why = destination.tracked(*destination.reply())
    assert code == errno.ENOSPC and "no room for a log" in why
    told.expect(told.LOG_STOP)
    # It can be tried again; and an answer to what was asked before is none.
    destination.control.send(stream.frame(TRACK))
    new, _ = told.expect(told.LOG_START)
    told.harvested(number)
    told.harvested(new)
    assert destination.tracked(*destination.reply()) == (0, "")
    destination.fill()
    os.pwrite(fd, b"\x82", 1)  # units 9 and 15
    destination.control.send(stream.frame(SYNC))
    new, _ = told.expect(told.LOG_HARVEST)
    told.harvested(new)
    assert destination.harvest(*destination.reply()) == {9, 15}
    assert os.pread(fd, 2, 0) == b"\0\0"
    destination.close()
    told.expect(told.LOG_STOP)
    os.close(fd)


def test_a_daemon_that_is_killed_while_the_vmm_pauses(host):
    """Whose pages count was decided, and written down, before the VMM was asked to pause."""
    daemon = host.daemon("source", allow=["postcopy:destination"], kind=KeptDaemon)
    daemon.prepare_source("vm1")
    vmm = ToldVmm(daemon, "vm1", pyvmm.guest_content(SIZE))
    host.later(vmm.close)
    fd = bitmap()
    vmm.offer(1, [fd])
    destination = WarmDestination(daemon, host.pki.destination, "vm1", SIZE)
    host.later(destination.close)
    destination.control.send(stream.frame(TRACK))
    number, _ = vmm.expect(vmm.LOG_START)
    vmm.harvested(number)
    assert destination.tracked(*destination.reply()) == (0, "")
    destination.fill()
    os.pwrite(fd, b"\x01", 0)
    destination.control.send(stream.frame(stream.SWITCHOVER))
    vmm.expect(pyvmm.PAUSE)
    daemon.crash()
    daemon.start()
    vmm.expect(pyvmm.PAUSE)
    destination.close()
    destination.where = (daemon.port, host.pki.destination)
    destination.dial()
    copy = destination.copy
    code, why = destination.track()
    assert code == errno.EBUSY and "paused" in why
    destination.copy = copy
    destination.control.send(stream.frame(stream.SWITCHOVER))
    os.pwrite(fd, b"\x01", 1)
    state = pyvmm.sealed_memfd(vmm.vmstate)
    vmm.send(pyvmm.paused(len(vmm.vmstate)), [state])
    os.close(state)
    assert destination.switch_over(send=False) == {0, 8}
    assert len(destination.copy) == UNITS - 2 and not destination.wrong()
    os.close(fd)


def test_it_is_told_to_stop_before_it_hears_how_it_ended(host, told):
    fd = bitmap()
    told.offer(1, [fd])
    os.close(fd)
    daemon = host.processes[0]
    destination = WarmDestination(daemon, host.pki.destination, "vm1", SIZE)
    host.later(destination.close)
    destination.control.send(stream.frame(TRACK))
    number, _ = told.expect(told.LOG_START)
    told.harvested(number)
    assert destination.tracked(*destination.reply()) == (0, "")
    daemon.call("Cancel", id="vm1")
    told.expect(told.LOG_STOP)
    told.expect(pyvmm.RESUME)
