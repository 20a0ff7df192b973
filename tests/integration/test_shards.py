# SPDX-License-Identifier: Apache-2.0
"""Guest memory that is watched by several userfaultfds (fault-threads): what a VMM is offered, whole
migrations, daemons that die before or after they have the answer, and answers that are wrong."""
import errno
import os
import re
import resource
import struct

import pytest

import harness
import pyvmm
from keeper import KeptDaemon
from pyvmm import PAGE
from test_migrate import Pair, assert_guest_is_whole, attach, pytestmark as needs_kvm
from test_reload import reread
from test_takeover import SLOT_BYTES, kept

MIB = 1 << 20
# Eight pieces of 2 MiB: as many parts as there can be.
SIZE = 16 * MIB
OF_MIGRATION = ["mem1.vm1", "pages.vm1", "record.vm1", "uffd.vm1", "vmm.vm1"]

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None, reason=str(pyvmm.can_userfault()))


def threads(n):
    return ["--fault-threads", str(n)]


class Divided:
    """Two daemons, a source that stands still, and a destination whose memory is divided when the
    test says so."""

    def __init__(self, host, n, vmm=pyvmm.DividedVmm, size=SIZE, prepare=None, **daemon):
        self.n = n
        self.size = size
        self.content = pyvmm.guest_content(size)
        self.source = host.daemon("source", allow=["postcopy:destination"])
        self.destination = host.daemon("destination", allow=["postcopy:source"], extra=threads(n),
                                       **{"kind": KeptDaemon, **daemon})
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address, bulk=False, **(prepare or {}))
        self.source_vmm = pyvmm.SourceVmm(self.source, "vm1", self.content)
        self.vmm = vmm(self.destination, "vm1", size)
        host.later(self.source_vmm.close)
        host.later(self.vmm.close)

    def answer(self):
        self.vmm.divide()
        self.vmm.say_shards()
        self.expect_taken()

    def expect_taken(self):
        self.destination.wait_for_log("%d userfaultfds watch the guest's memory" % self.n)

    def crash(self):
        self.destination.crash()
        self.destination.start()

    def run(self):
        """The guest runs at the destination."""
        self.destination.call("Start", id="vm1")
        self.source_vmm.pause()
        assert self.vmm.load() == self.source_vmm.vmstate

    def expect_page(self, unit, thread, page):
        thread.join(harness.DEADLINE_S)
        assert not thread.is_alive(), "page %d has not come" % unit
        assert page.raw == self.content[unit * PAGE:(unit + 1) * PAGE], "page %d is wrong" % unit

    def touch_all(self):
        units = self.vmm.units_of_all(self.n)
        for unit, (thread, page) in [(unit, self.vmm.touch(unit)) for unit in units]:
            self.expect_page(unit, thread, page)

    def finish(self):
        self.destination.call("SetLimits", id="vm1", bulk=True)
        for vmm in (self.source_vmm, self.vmm):
            while vmm.receive()[0] != pyvmm.COMPLETE:
                pass
        assert os.pread(self.vmm.memory_fd, self.size, 0) == self.content
        for daemon in (self.source, self.destination):
            daemon.wait_for_state("vm1", "complete")
        harness.eventually(lambda: kept(self.destination) <= {"record.vm1", "vmm.vm1"},
                           "the store has let go of %s" % kept(self.destination))


def record_major(daemon):
    """Of the newest slot of its record: what a daemon has to know that goes on from it."""
    fd = next(fd for name, fd in daemon.store.fds if name == "record.vm1")
    slots = [os.pread(fd, SLOT_BYTES, at * SLOT_BYTES) for at in (0, 1)]
    newest = max(slots, key=lambda slot: struct.unpack_from("<QQ", slot + bytes(16))[1])
    # Its first field.
    assert newest[32] == 8
    return newest[33]


# What is offered.

@pytest.mark.parametrize("wanted, size, offered", [
    (2, SIZE, 2), (8, SIZE, 8), (4, 6 * MIB, 3), (8, 4 * MIB, 2)])
def test_as_many_as_are_wanted_and_have_a_part_are_offered(host, wanted, size, offered):
    pair = Divided(host, wanted, size=size)
    assert pair.vmm.offer == offered
    # Nothing of it is kept yet.
    pair.destination.store.settle()
    assert kept(pair.destination) == set(OF_MIGRATION)


@pytest.mark.parametrize("wanted, size", [(1, SIZE), (8, 2 * MIB), (8, MIB)])
def test_one_userfaultfd_is_not_worth_an_offer(host, wanted, size):
    pair = Divided(host, wanted, vmm=Silent, size=size)
    assert pair.vmm.seen == [pyvmm.ATTACHED]


class Silent(pyvmm.DividedVmm):
    """One that has seen what it is told, and answers none of it."""

    def await_attached(self):
        self.seen = []
        while pyvmm.ATTACHED not in self.seen:
            self.seen.append(self.receive_any()[0])


def test_a_changed_number_is_for_who_attaches_next(host):
    path = host.dir / "own.conf"
    path.write_text("[host]\nfault-threads=1\n")
    daemon = host.daemon("destination", extra=["--config", path])
    for number in range(2):
        daemon.prepare_destination("vm%d" % number, "127.0.0.1:9")
    first = Silent(daemon, "vm0", SIZE)
    host.later(first.close)
    reread(daemon, path, "[host]\nfault-threads=3\n")
    second = Silent(daemon, "vm1", SIZE)
    host.later(second.close)
    assert first.seen == [pyvmm.ATTACHED]
    assert second.seen == [pyvmm.OFFER_SHARDS, pyvmm.ATTACHED]


def test_fewer_are_offered_where_the_store_has_no_room(host):
    """What is kept for the migration without them fits, and two of them and their journals."""
    pair = Divided(host, 8, most=16)
    most = pair.vmm.offer
    assert 1 < most < 8
    assert "instead of 8" in pair.destination.log()
    pair.n = most
    pair.answer()
    pair.destination.store.settle()
    assert "journals.vm1" in kept(pair.destination)


# Whole migrations.

@needs_kvm
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("backend", ["memfd", "anon"])
def test_a_guest_moves(host, n, backend):
    pair = Pair(host, extra=threads(n))
    vmms = pair.attach("vm1", backend=backend, memory="64M", vcpus=2)
    if n > 1:
        pair.destination.wait_for_log("%d userfaultfds watch the guest's memory" % n)
    pair.start("vm1")
    pair.finish("vm1", *vmms)
    assert ("userfaultfds watch" in pair.destination.log()) == (n > 1)


@needs_kvm
@pytest.mark.parametrize("n", [2, 4])
def test_a_guest_moves_warm(host, n):
    pair = Pair(host, extra=threads(n))
    vmms = pair.attach("vm1", backend="memfd", memory="64M", vcpus=2)
    pair.start("vm1", warm={})
    migration = pair.finish("vm1", *vmms)
    assert migration["warm"]["refused"] == ""
    assert "%d userfaultfds watch" % n in pair.destination.log()


@needs_kvm
@pytest.mark.parametrize("backend", ["memfd", "anon"])
def test_a_guest_moves_through_restarts(host, backend):
    """Library and daemon, as they are: killed before the start, and with pages missing."""
    source = host.daemon("source", allow=["postcopy:destination"])
    destination = host.daemon("destination", allow=["postcopy:source"], extra=threads(4), kind=KeptDaemon)
    vmms = attach(host, source, destination, "vm1", {"bulk": False}, backend=backend, vcpus=2)
    destination.wait_for_log("4 userfaultfds watch the guest's memory")
    destination.crash_and_restart()
    destination.call("Start", id="vm1")
    vmms[1].wait_for_event("resumed")
    destination.crash_and_restart()
    destination.wait_for_state("vm1", "postcopy")
    destination.call("SetLimits", id="vm1", bulk=True)
    destination.wait_for_state("vm1", "complete")
    vmms[0].wait_for_event("complete")
    assert_guest_is_whole(vmms[1])


@pytest.mark.parametrize("n", [2, 8])
def test_each_part_is_served(host, n):
    pair = Divided(host, n)
    pair.answer()
    pair.destination.store.settle()
    assert kept(pair.destination) == {*OF_MIGRATION, "journals.vm1",
                                      *("uffd%d.vm1" % shard for shard in range(1, n))}
    pair.run()
    pair.touch_all()
    # Older daemons are not to touch it, and when it is over may be put in this one's place.
    assert record_major(pair.destination) == 4
    pair.finish()
    assert record_major(pair.destination) == 3


def test_a_vmm_that_divides_it_late_is_served(host):
    """In any order: the guest waits for pages of parts whose userfaultfd nobody has yet."""
    pair = Divided(host, 4)
    pair.vmm.divide()
    pair.destination.call("Start", id="vm1")
    pair.source_vmm.pause()
    pair.vmm.expect(pyvmm.VMSTATE)
    units = pair.vmm.units_of_all(4)
    waiting = [(unit, *pair.vmm.touch(unit)) for unit in units]
    # Those of the first part come.
    for unit, thread, page in waiting[:2]:
        pair.expect_page(unit, thread, page)
    assert all(thread.is_alive() for _, thread, _ in waiting[2:])
    pair.vmm.say_shards()
    for unit, thread, page in waiting[2:]:
        pair.expect_page(unit, thread, page)
    pair.vmm.send(pyvmm.packet(pyvmm.LOADED))
    pair.vmm.send(pyvmm.packet(pyvmm.RESUMED))
    pair.finish()


def test_a_vmm_may_make_fewer(host):
    pair = Divided(host, 8)
    pair.vmm.divide(3)
    pair.vmm.say_shards()
    pair.n = 3
    pair.expect_taken()
    harness.eventually(lambda: {name for name in kept(pair.destination) if name.startswith("uffd")} ==
                       {"uffd.vm1", "uffd1.vm1", "uffd2.vm1"}, "two are kept")
    pair.run()
    pair.touch_all()
    pair.finish()


def test_an_older_vmm_is_served_by_the_one_it_has(host):
    """It has passed over what it does not know; what was held for it in the store is free again."""
    pair = Divided(host, 8, most=24)
    assert record_major(pair.destination) == 4
    pair.run()
    harness.eventually(lambda: record_major(pair.destination) == 3, "nothing is offered any more")
    pair.n = 1
    pair.touch_all()
    pair.finish()
    assert "userfaultfds watch" not in pair.destination.log()


# Daemons that die.

def test_killed_before_the_answer(host):
    """Offered and not answered: it is offered again, once."""
    pair = Divided(host, 4)
    pair.crash()
    assert pair.vmm.expect_offer() == 4
    pair.answer()
    pair.run()
    pair.touch_all()
    pair.finish()


def test_killed_with_the_answer_unread(host):
    """It waits in the socket."""
    pair = Divided(host, 4)
    pair.vmm.divide()
    pair.destination.crash()
    pair.vmm.say_shards()
    pair.destination.start()
    pair.expect_taken()
    pair.run()
    pair.touch_all()
    pair.finish()


@pytest.mark.parametrize("said", [False, True])
def test_killed_when_it_had_taken_the_answer_and_not_written_it_down(host, said):
    """Kept are some of them, as a process has left them that was killed in between: the VMM says again
    what it has said. It may have been asked already, by one that was killed as well."""
    pair = Divided(host, 4)
    pair.vmm.divide()
    pair.destination.crash()
    for shard, uffd in list(enumerate(pair.vmm.shards, 1))[:2]:
        pair.destination.store.fds.append(("uffd%d.vm1" % shard, os.dup(uffd)))
    journals = pyvmm.memfd(size=1 << 16)
    pair.destination.store.fds.append(("journals.vm1", journals))
    if said:
        pair.vmm.say_shards()
    pair.destination.start()
    if not said:
        assert pair.vmm.expect_offer() == 4
        pair.vmm.say_shards()
    pair.expect_taken()
    pair.run()
    pair.touch_all()
    pair.finish()


def test_killed_before_and_after_it_is_answered_twice(host):
    """The answer to the offer of each process: the second says nothing new."""
    pair = Divided(host, 4)
    pair.vmm.divide()
    pair.destination.crash()
    pair.vmm.say_shards()
    pair.vmm.say_shards()
    pair.destination.start()
    pair.expect_taken()
    pair.run()
    pair.touch_all()
    pair.finish()


@pytest.mark.parametrize("crashes", [1, 2])
def test_killed_while_pages_are_missing(host, crashes):
    pair = Divided(host, 4)
    pair.answer()
    pair.run()
    units = pair.vmm.units_of_all(4)
    for unit in units[::2]:
        pair.expect_page(unit, *pair.vmm.touch(unit))
    pair.source.popen.send_signal(19)
    waiting = [(unit, *pair.vmm.touch(unit)) for unit in units[1::2]]
    harness.eventually(lambda: pair.destination.call("Get", id="vm1")["faults"]["total"] >= len(units),
                       "the faults are read")
    for _ in range(crashes):
        pair.crash()
    pair.source.popen.send_signal(18)
    for unit, thread, page in waiting:
        pair.expect_page(unit, thread, page)
    pair.finish()


def test_killed_and_offered_again_to_a_guest_that_runs(host):
    """Its first answer went with a process that had read it; its guest runs by now, and waits for pages
    of those parts."""
    pair = Divided(host, 4)
    pair.vmm.divide()
    pair.destination.call("Start", id="vm1")
    pair.source_vmm.pause()
    pair.vmm.expect(pyvmm.VMSTATE)
    pair.crash()
    assert pair.vmm.expect_offer() == 4
    pair.vmm.load()
    units = pair.vmm.units_of_all(4)
    waiting = [(unit, *pair.vmm.touch(unit)) for unit in units]
    pair.crash()
    assert pair.vmm.expect_offer() == 4
    pair.vmm.say_shards()
    for unit, thread, page in waiting:
        pair.expect_page(unit, thread, page)
    pair.finish()


def test_the_watch_does_not_end_while_a_part_is_nobody_s(host):
    """All pages are here, and who touches one in a part whose userfaultfd the daemon lacks would have
    waited for good. (Pages that are mapped ahead are: the kernel lets any userfaultfd of a process do that.)"""
    pair = Divided(host, 4, prepare={"map": "lazy"})
    pair.vmm.divide()
    pid, limit = pair.destination.pid, resource.RLIMIT_NOFILE
    before = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (3, before[1]))
    pair.vmm.say_shards()
    pair.destination.wait_for_log("more userfaultfds: SHARDS: its descriptors could not be taken")
    resource.prlimit(pid, limit, before)
    assert pair.vmm.expect_offer() == 4
    pair.run()
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    harness.eventually(lambda: pair.destination.call("Get", id="vm1")["pages_present"] == SIZE // PAGE,
                       "every page is here")
    unit = SIZE // PAGE - 1
    thread, page = pair.vmm.touch(unit)
    # As soon as it could be: some looks of the conductor's.
    thread.join(1)
    assert thread.is_alive() and pair.destination.state("vm1") == "postcopy"
    pair.vmm.say_shards()
    pair.expect_page(unit, thread, page)
    pair.finish()


def test_a_vmm_that_does_not_answer_the_next_process_is_waited_for_a_while(host):
    """It may be one that has never heard of it."""
    pair = Divided(host, 4)
    pair.crash()
    assert pair.vmm.expect_offer() == 4
    pair.run()
    pair.n = 1
    pair.touch_all()
    pair.finish()


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("room, lacking", [(0, "more userfaultfds: SHARDS: its descriptors could not be taken"),
                                           (3, "4 userfaultfds can't be taken yet")])
def test_an_answer_that_finds_no_descriptors_is_asked_for_again(host, room, lacking, crash):
    """Also of a guest that is loaded and runs by then: nobody else could serve it."""
    pair = Divided(host, 4)
    pair.vmm.divide()
    pid, limit = pair.destination.pid, resource.RLIMIT_NOFILE
    before = resource.prlimit(pid, limit)
    used = {int(fd) for fd in os.listdir("/proc/%d/fd" % pid)}
    # The lowest numbers are given first.
    most = next(n for n in range(3, 1024) if n - sum(fd < n for fd in used) == room)
    resource.prlimit(pid, limit, (most, before[1]))
    pair.vmm.say_shards()
    pair.destination.wait_for_log(lacking)
    resource.prlimit(pid, limit, before)
    assert pair.vmm.expect_offer() == 4
    pair.run()
    pair.destination.wait_for_state("vm1", "postcopy")
    harness.eventually(lambda: "vmstate.vm1" not in kept(pair.destination), "RESUMED is taken")
    waiting = [(unit, *pair.vmm.touch(unit)) for unit in pair.vmm.units_of_all(4)]
    if crash:
        pair.crash()
        assert pair.vmm.expect_offer() == 4
    pair.vmm.say_shards()
    for unit, thread, page in waiting:
        pair.expect_page(unit, thread, page)
    pair.finish()


def test_a_vmm_that_goes_takes_all_of_it_along(host):
    pair = Divided(host, 4)
    pair.answer()
    before = pair.destination.resources()["fds"]
    pair.vmm.close()
    pair.destination.wait_for_state("vm1", "prepared")
    harness.eventually(lambda: kept(pair.destination) == {"record.vm1"},
                       "the store has let go of %s" % kept(pair.destination))
    # Itself, its memory, page state and record, four userfaultfds and their journals, and the copies of each.
    harness.eventually(lambda: pair.destination.resources()["fds"] <= before - 14, "all are closed")
    again = pyvmm.DividedVmm(pair.destination, "vm1", SIZE)
    host.later(again.close)
    pair.vmm = again
    pair.answer()
    pair.run()
    pair.touch_all()
    pair.finish()


# Answers that are wrong.

BAD = {
    "more than there can be": (9, lambda: [pyvmm.empty_userfaultfd() for _ in range(8)],
                               "SHARDS of 9; 2 to 8 are possible"),
    "more than were offered": (5, lambda: [pyvmm.empty_userfaultfd() for _ in range(4)],
                               "SHARDS of 5 userfaultfds, where 4 were offered"),
    "one": (1, lambda: [], "SHARDS of 1; 2 to 8"),
    "fewer descriptors than it says": (4, lambda: [pyvmm.empty_userfaultfd()], "SHARDS of 4 came with 1"),
    "more descriptors than it says": (2, lambda: [pyvmm.empty_userfaultfd() for _ in range(3)],
                                      "SHARDS of 2 came with 3"),
    "a memfd": (3, lambda: [pyvmm.empty_userfaultfd(), pyvmm.memfd(size=PAGE)],
                "shard 2: .*is no userfaultfd"),
    "a memfd that calls itself a userfaultfd": (
        2, lambda: [os.memfd_create("anon_inode:[userfaultfd]")], "shard 1: .*is no userfaultfd"),
    "one without events": (2, lambda: [pyvmm.empty_userfaultfd(0)], "shard 1: .*features"),
    "one with fewer features than the first": (
        2, lambda: [pyvmm.empty_userfaultfd(1 << 2 | 1 << 3 | 1 << 6)], "shard 1: .*features"),
}


def refused(pair, data, fds):
    """The VMM is told and cut off, as if it had never attached; a good one is welcome. Returns the text."""
    pair.vmm.send(data, fds)
    for fd in fds:
        os.close(fd)
    code, text = pair.vmm.expect_error()
    assert code in (errno.EINVAL, errno.EPROTO, errno.EEXIST)
    pair.destination.wait_for_state("vm1", "prepared")
    harness.eventually(lambda: kept(pair.destination) == {"record.vm1"},
                       "the store has let go of %s" % kept(pair.destination))
    return text


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_answer_is_refused(host, case):
    n, make, named = BAD[case]
    pair = Divided(host, 4)
    before = pair.destination.resources()["fds"]
    text = refused(pair, pyvmm.shards(n), make())
    assert re.search(named, text), text
    harness.eventually(lambda: pair.destination.resources()["fds"] < before, "all are closed")
    pair.vmm = pyvmm.DividedVmm(pair.destination, "vm1", SIZE)
    host.later(pair.vmm.close)
    pair.run()
    pair.n = 1
    pair.touch_all()
    pair.finish()


def test_a_userfaultfd_given_twice_is_refused(host):
    pair = Divided(host, 4)
    one = pyvmm.empty_userfaultfd()
    text = refused(pair, pyvmm.shards(3), [one, os.dup(one)])
    assert "the same open file" in text
    pair.vmm = pyvmm.DividedVmm(pair.destination, "vm1", SIZE)
    host.later(pair.vmm.close)
    assert "the same open file" in refused(pair, pyvmm.shards(2), [os.dup(pair.vmm.uffd)])


def test_an_answer_that_nobody_asked_for_is_refused(host):
    pair = Divided(host, 1, vmm=Silent)
    text = refused(pair, pyvmm.shards(2), [pyvmm.empty_userfaultfd()])
    assert "where 0 were offered" in text


def test_an_answer_that_is_said_twice_is_refused(host):
    pair = Divided(host, 4)
    pair.answer()
    text = refused(pair, pyvmm.shards(4), [os.dup(uffd) for uffd in pair.vmm.shards])
    assert "where 4 are known: it is said once" in text


def test_a_source_has_no_shards(host):
    daemon = host.daemon("source", extra=threads(4))
    daemon.prepare_source("vm1")
    vmm = pyvmm.SourceVmm(daemon, "vm1", bytes(SIZE))
    host.later(vmm.close)
    uffd = pyvmm.empty_userfaultfd()
    vmm.send(pyvmm.shards(2), [uffd])
    os.close(uffd)
    code, text = vmm.expect_error()
    assert code == errno.EPROTO and "message 23 is not for a source" in text
    daemon.wait_for_state("vm1", "prepared")
