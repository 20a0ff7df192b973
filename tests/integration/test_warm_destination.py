# SPDX-License-Identifier: Apache-2.0
"""Memory that is copied while the guest runs at the source: a destination daemon against a source
whose guest is played here, so that what it writes, and when, is the test's."""
import errno
import os
import random
import threading

import pytest

import harness
import pyvmm
import stream
from stream import UNIT, WarmSource

SIZE = 4 << 20
UNITS = SIZE // UNIT

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


def page(seed):
    return seed.to_bytes(4, "little") * (UNIT // 4)


class Guest(threading.Thread):
    """Writes all the time, at the source, until it is paused: data, zeroes, data again."""

    def __init__(self, source, units, seed=1):
        super().__init__(daemon=True)
        self.source, self.units, self.random = source, units, random.Random(seed)
        self.writes = 0
        self.start()

    def write(self):
        unit = self.random.choice(self.units)
        zero = self.random.random() < 0.4
        self.writes += 1
        return self.source.write(unit, bytes(UNIT) if zero else page(self.writes))

    def run(self):
        while self.write() and not self.source.closed:
            pass


def wrong_pages(vmm, source):
    """All of them must be there: what is zero, too, for it may have been something else."""
    here = os.pread(vmm.memory_fd, SIZE, 0)
    return [unit for unit in range(UNITS)
            if here[unit * UNIT:(unit + 1) * UNIT] != source.content[unit * UNIT:(unit + 1) * UNIT]]


class Warming:
    def __init__(self, host):
        self.host = host
        self.daemon = host.daemon("destination", allow=["postcopy:source"])
        self.content = bytearray(pyvmm.guest_content(SIZE))
        self.content[100 * UNIT:200 * UNIT] = bytes(100 * UNIT)

    def source(self, **options):
        source = WarmSource(self.host.pki.source, self.content, **options)
        self.host.later(source.close)
        return source

    def start(self, source, warm, migration_id="vm1", switchover=True, **options):
        self.daemon.prepare_destination(migration_id, source.address, **options)
        vmm = pyvmm.DestinationVmm(self.daemon, migration_id, SIZE)
        self.host.later(vmm.close)
        self.daemon.call("Start", id=migration_id, warm=warm, switchover=switchover)
        return vmm

    def warm(self, migration_id="vm1"):
        return self.daemon.call("Get", id=migration_id)["warm"]

    def wait(self, condition, what):
        return harness.eventually(lambda: condition(self.warm()), what)

    def finish(self, source, vmm, migration_id="vm1"):
        """The guest is here, and whole."""
        assert vmm.load() == source.vmstate
        vmm.expect(pyvmm.COMPLETE)
        assert wrong_pages(vmm, source) == []
        assert source.owed == []
        return self.daemon.wait_for_state(migration_id, "complete")


@pytest.fixture
def warming(host):
    return Warming(host)


def test_a_guest_that_stands_still_is_there_at_the_switchover(warming):
    source = warming.source()
    ended = warming.finish(source, warming.start(source, {}))
    assert ended["warm"]["rounds"] == 1
    assert ended["warm"]["dirty_pages_at_switchover"] == 0
    assert ended["warm"]["refused"] == ""
    # Each page once, all of them before the pause. On a slow host it is looked at amid the round, too.
    assert 2 <= source.harvests <= 4 and len(source.asked) == UNITS // 64
    assert ended["faults"]["remote"] == 0


@pytest.mark.parametrize("streams", (1, 3))
@pytest.mark.parametrize("map_policy", ("eager", "lazy"))
def test_a_guest_that_writes_all_the_time_is_whole(warming, map_policy, streams):
    source = warming.source()
    guest = Guest(source, list(range(0, UNITS, 3)))
    # In each round, also where its thread gets no CPU for as long.
    source.hold_answer = lambda source: guest.write()
    vmm = warming.start(source, {"max_rounds": 5}, map=map_policy, streams=streams)
    ended = warming.finish(source, vmm)
    guest.join(harness.DEADLINE_S)
    assert ended["warm"]["rounds"] == 5 and source.harvests == 6
    assert ended["warm"]["dirty_pages_at_switchover"] < UNITS
    assert ended["warm"]["dirty_bytes_per_s"] > 0


@pytest.mark.parametrize("policy", ({}, {"max_rounds": 2}, {"max_time": "600s"}))
def test_what_was_written_in_a_round_is_not_told_in_the_downtime(warming, policy):
    source = warming.source()
    written = list(range(0, UNITS, 4))
    source.hold_answer = lambda source: [source.write(unit, page(unit + 1)) for unit in written]
    vmm = warming.start(source, policy)
    if "max_time" in policy:
        # It is over when all has come once, however long that takes here.
        warming.wait(lambda warm: warm["rounds"] >= 1, "a round")
        warming.daemon.call("SetLimits", id="vm1", warm={"max_time": "0.001s"})
    ended = warming.finish(source, vmm)
    assert ended["warm"]["dirty_pages_at_switchover"] == len(written)
    assert ended["warm"]["dirty_bytes_per_s"] > 0
    assert source.kept == []


def test_a_round_is_given_up_where_it_gains_nothing(warming):
    """A guest that writes all of its memory, over and over, on a path that is slower than that."""
    source = warming.source()
    begun = threading.Event()
    source.hold_answer = lambda source: (begun.set(),
                                         [source.write(unit, page(unit)) for unit in range(UNITS)])
    vmm = warming.start(source, {}, bandwidth_bytes_per_s=2 << 20)
    ended = warming.finish(source, vmm)
    warm = ended["warm"]
    assert begun.is_set() and warm["rounds"] == 0 and warm["refused"] == ""
    assert warm["given_up_percent"] >= 33
    assert warm["bytes"] < SIZE and source.owed == []
    assert "its guest writes so fast that %d %% of its memory would be dirty again" % warm[
        "given_up_percent"] in warming.daemon.log()


@pytest.mark.parametrize("policy", ({}, {"max_rounds": 1}))
def test_a_round_goes_on_where_it_gains_something_or_was_asked_for(warming, policy):
    """As slow: but the guest writes a fifth of its memory only, or its operator wants that round."""
    source = warming.source()
    written = list(range(0, UNITS, 1 if policy else 5))
    source.hold_answer = lambda source: [source.write(unit, page(unit)) for unit in written]
    ended = warming.finish(source, warming.start(source, policy, bandwidth_bytes_per_s=4 << 20))
    assert ended["warm"]["rounds"] == 1 and ended["warm"]["given_up_percent"] == 0
    assert source.harvests == (2 if policy else 4)
    assert ended["warm"]["dirty_pages_at_switchover"] == len(written)


def test_what_is_written_all_the_time_comes_before_the_rest(warming):
    """No vCPU runs here: so no fault asks for anything first."""
    source = warming.source()
    often, late = list(range(UNITS // 2, UNITS, 8)), list(range(0, UNITS // 2, 8))

    def write(source):
        # By the second harvest two rounds have passed: this is the third, and the last.
        for unit in often + (late if source.harvests == 2 else []):
            source.write(unit, page(unit + 1))
    source.hold_answer = write
    ended = warming.finish(source, warming.start(source, {"max_rounds": 3}, streams=1))
    assert ended["warm"]["rounds"] == 3
    assert ended["warm"]["dirty_pages_at_switchover"] == len(often) + len(late)
    assert ended["prefetch"]["recent"] == len(often)
    words = (len(often) + len(late)) * 8 // 64
    last = [first_unit for _, first_unit, *_ in source.asked[-words:]]
    assert min(last[:words // 2]) >= UNITS // 2 > max(last[words // 2:])


def test_nothing_is_seen_of_what_was_stale(warming):
    """The guest's own view, page by page as it touches them, with bulk off after the switchover."""
    source = warming.source()
    vmm = warming.start(source, {}, switchover=False)
    warming.wait(lambda warm: warm["rounds"] >= 2, "two rounds")
    # Data to zero, zero to data, data to other data; and not told before the switchover.
    for unit in range(0, 300, 7):
        source.write(unit, bytes(UNIT))
    for unit in range(1, 300, 7):
        source.write(unit, page(unit))
    warming.daemon.call("SetLimits", id="vm1", bulk=False)
    warming.daemon.call("Switchover", id="vm1")
    assert vmm.load() == source.vmstate
    for unit in range(0, 300):
        thread, touched = vmm.touch(unit)
        thread.join(harness.DEADLINE_S)
        assert touched.raw == bytes(source.content[unit * UNIT:(unit + 1) * UNIT]), unit
    warming.daemon.call("SetLimits", id="vm1", bulk=True)
    vmm.expect(pyvmm.COMPLETE)
    assert wrong_pages(vmm, source) == []


def test_no_answer_is_under_way_when_it_is_asked_what_was_written(warming):
    """One that was read before the log was cleared would count as newer than it is."""
    source = warming.source(vmstate=b"v" * 1000)
    slow = threading.Event()
    source.hold_answer = lambda source: slow.wait(0.1)
    guest = Guest(source, list(range(UNITS)))
    vmm = warming.start(source, {"max_time": "0.3s"}, streams=3)
    ended = warming.finish(source, vmm)
    guest.join(harness.DEADLINE_S)
    # It was ended in the middle of a round.
    assert ended["warm"]["dirty_pages_at_switchover"] > 0
    assert ended["warm"]["warm_ms"] >= 300


def test_it_is_over_when_little_is_dirty(warming):
    source = warming.source()
    busy = threading.Event()

    def few(source=source):
        unit = 0
        while not busy.is_set() and source.write(unit % 5, page(unit + 1)):
            unit += 1
            busy.wait(0.001)
    thread = threading.Thread(target=few, daemon=True)
    thread.start()
    ended = warming.finish(source, warming.start(source, {"dirty_bytes": 10 * UNIT}))
    busy.set()
    thread.join(harness.DEADLINE_S)
    assert ended["warm"]["rounds"] == 1
    assert ended["warm"]["dirty_pages_at_switchover"] <= 5
    assert ended["warm"]["policy"]["dirty_bytes"] == 10 * UNIT


def test_it_is_over_when_it_would_soon_catch_up(warming):
    source = warming.source()
    guest = Guest(source, list(range(20)))
    ended = warming.finish(source, warming.start(source, {"catch_up": "3600s"}))
    guest.join(harness.DEADLINE_S)
    assert ended["warm"]["rounds"] == 1 and ended["warm"]["catch_up_ms"] is not None


def test_it_goes_on_until_it_is_told(warming):
    source = warming.source()
    guest = Guest(source, list(range(0, UNITS, 5)))
    vmm = warming.start(source, {"max_rounds": 1}, switchover=False)
    warming.wait(lambda warm: warm["rounds"] >= 3, "rounds go on")
    status = warming.daemon.call("Get", id="vm1")
    assert status["state"] == "warming"
    assert status["warm"]["bytes_per_s"] > 0 and status["warm"]["bytes"] >= SIZE - 100 * UNIT
    warming.daemon.call("Switchover", id="vm1")
    warming.finish(source, vmm)
    guest.join(harness.DEADLINE_S)


def test_started_twice_it_warms_on(warming):
    source = warming.source()
    Guest(source, list(range(UNITS)))
    vmm = warming.start(source, {"max_rounds": 1000000})
    warming.wait(lambda warm: warm["rounds"] >= 1, "it warms")
    for _ in range(2):
        warming.daemon.call("Start", id="vm1", warm={"max_rounds": 1000000})
    rounds = warming.warm()["rounds"]
    warming.wait(lambda warm: warm["rounds"] > rounds + 1, "it goes on")
    assert not source.paused
    warming.daemon.call("Switchover", id="vm1")
    warming.finish(source, vmm)


def test_its_end_can_be_set_while_it_warms(warming):
    source = warming.source()
    Guest(source, list(range(UNITS)))
    vmm = warming.start(source, {"max_rounds": 1000000})
    warming.wait(lambda warm: warm["rounds"] >= 1, "it warms")
    warming.daemon.call("SetLimits", id="vm1", warm={"max_rounds": 2})
    warming.finish(source, vmm)


@pytest.mark.parametrize("why", ("a daemon of before", "it can't log"))
def test_a_source_that_can_not_log_is_as_ever(warming, why):
    source = warming.source(refuse="guest_memfd bound to a memslot has no dirty log")
    if why == "a daemon of before":
        source.warm = None
    ended = warming.finish(source, warming.start(source, {"max_rounds": 3}))
    assert ended["warm"]["rounds"] == 0 and ended["warm"]["warm_ms"] is None
    told = "older" if why == "a daemon of before" else "has no dirty log"
    assert told in ended["warm"]["refused"]
    assert source.tracks == (0 if why == "a daemon of before" else 1)
    assert ended["warm"]["dirty_pages_at_switchover"] == UNITS


@pytest.mark.parametrize("held", (False, True))
def test_a_refusal_that_passes_is_tried_again(warming, held):
    """The source's daemon had just been started again, on a busy host: "has not answered for 10 s"."""
    source = warming.source(refuse="it has not answered for 10 s", refuse_code=errno.ETIMEDOUT,
                            refuse_times=2)
    vmm = warming.start(source, {"max_rounds": 2}, switchover=not held)
    if held:
        warming.wait(lambda warm: warm["rounds"] >= 1, "it is warm")
        warming.daemon.call("Switchover", id="vm1")
    ended = warming.finish(source, vmm)
    assert source.tracks == 3
    assert ended["warm"]["refused"] == "" and ended["warm"]["rounds"] >= 1
    assert "it has not answered" not in ended["reason"]


def test_a_harvest_that_fails_for_once_begins_again(warming):
    source = warming.source()
    guest = Guest(source, list(range(UNITS)))
    real, failed = source._answer, []

    def fails_once(connection, kind, payload, request_id):
        if kind == stream.SYNC and source.harvests >= 1 and not failed:
            failed.append(1)
            source.log_of = None
            connection.send(stream.tracked(errno.ENOMEM, "no room for the log"))
        else:
            real(connection, kind, payload, request_id)
    source._answer = fails_once
    ended = warming.finish(source, warming.start(source, {"max_rounds": 3}))
    guest.join(harness.DEADLINE_S)
    assert failed and source.tracks == 2 and ended["warm"]["refused"] == ""


def test_one_that_passes_never_goes_on_without(warming):
    source = warming.source(refuse="it has not answered for 10 s", refuse_code=errno.ETIMEDOUT)
    ended = warming.finish(source, warming.start(source, {"max_rounds": 2}))
    assert source.tracks > 1
    assert "has not answered" in ended["warm"]["refused"] and ended["warm"]["rounds"] == 0


def test_a_switchover_does_not_wait_for_what_may_pass(warming):
    source = warming.source(refuse="it has not answered for 10 s", refuse_code=errno.ETIMEDOUT)
    vmm = warming.start(source, {}, switchover=False)
    harness.eventually(lambda: source.tracks >= 2, "it is tried again")
    reason = harness.eventually(lambda: warming.daemon.call("Get", id="vm1")["reason"], "it says why")
    assert "yet: the source says: it has not answered" in reason and "trying on" in reason
    warming.daemon.call("Switchover", id="vm1")
    ended = warming.finish(source, vmm)
    assert "has not answered" in ended["warm"]["refused"]


@pytest.mark.parametrize("when", ("before", "meanwhile"))
def test_with_bulk_off_it_ends(warming, when):
    source = warming.source()
    if when == "before":
        vmm = warming.start(source, {"max_rounds": 3}, bulk=False)
    else:
        stuck = threading.Event()
        source.hold_answer = lambda source: stuck.wait(0.02)
        vmm = warming.start(source, {"max_rounds": 1000000})
        harness.eventually(lambda: len(source.asked) > 2, "it warms")
        warming.daemon.call("SetLimits", id="vm1", bulk=False)
    assert vmm.load() == source.vmstate
    warming.daemon.call("SetLimits", id="vm1", bulk=True)
    vmm.expect(pyvmm.COMPLETE)
    assert wrong_pages(vmm, source) == []
    ended = warming.daemon.wait_for_state("vm1", "complete")
    assert "bulk is off" in ended["warm"]["refused"]
    assert source.tracks == (0 if when == "before" else 1)


def test_without_warm_nothing_is_asked_for_before_the_switchover(warming):
    source = warming.source()
    vmm = pyvmm.DestinationVmm
    warming.daemon.prepare_destination("vm1", source.address)
    vmm = vmm(warming.daemon, "vm1", SIZE)
    warming.host.later(vmm.close)
    warming.daemon.call("Start", id="vm1")
    ended = warming.finish(source, vmm)
    assert source.tracks == 0 and ended["warm"] is None


def test_a_connection_that_is_lost_while_it_warms_begins_again(warming):
    source = warming.source()
    guest = Guest(source, list(range(0, UNITS, 3)))
    vmm = warming.start(source, {}, switchover=False)
    for times in (1, 2, 3):
        warming.wait(lambda warm: source.tracks >= times and warm["rounds"] >= 1, "it warms")
        for raw in source.connections[:]:
            try:
                raw.shutdown(2)
            except OSError:
                pass
        harness.eventually(lambda: source.tracks > times, "it is tracked anew")
    warming.wait(lambda warm: warm["rounds"] >= 1, "it warms")
    warming.daemon.call("Switchover", id="vm1")
    warming.finish(source, vmm)
    guest.join(harness.DEADLINE_S)


def test_what_the_source_kept_is_told_again(warming):
    """The connection is lost between what was written and the vmstate: the guest is paused by then."""
    source = warming.source()
    guest = Guest(source, list(range(0, UNITS, 3)))
    times = []

    def cut_twice(source, connection):
        times.append(1)
        if len(times) <= 2:
            raise EOFError
    source.before_vmstate = cut_twice
    ended = warming.finish(source, warming.start(source, {"max_rounds": 2}))
    guest.join(harness.DEADLINE_S)
    assert len(times) == 3
    assert 0 < ended["warm"]["dirty_pages_at_switchover"] < UNITS


def test_a_source_that_knows_nothing_any_more_is_fetched_from_anew(warming):
    """It was started again after the last round: its log is gone, and its guest has written."""
    source = warming.source()
    guest = Guest(source, list(range(UNITS)))
    real = source._answer

    def forgetful(connection, kind, payload, request_id):
        if kind == stream.SWITCHOVER:
            source.log_of = None
        real(connection, kind, payload, request_id)
    source._answer = forgetful
    vmm = warming.start(source, {}, switchover=False)
    warming.wait(lambda warm: warm["rounds"] >= 2, "two rounds")
    warming.daemon.call("Switchover", id="vm1")
    ended = warming.finish(source, vmm)
    guest.join(harness.DEADLINE_S)
    assert ended["warm"]["dirty_pages_at_switchover"] == UNITS


def test_a_log_that_breaks_off_ends_warming_and_nothing_else(warming):
    source = warming.source()
    guest = Guest(source, list(range(UNITS)))
    real = source._answer

    def breaks(connection, kind, payload, request_id):
        if kind == stream.SYNC and source.harvests >= 2:
            source.log_of = None
            connection.send(stream.tracked(5, "the log is gone"))
        else:
            real(connection, kind, payload, request_id)
    source._answer = breaks
    ended = warming.finish(source, warming.start(source, {"max_rounds": 10}))
    guest.join(harness.DEADLINE_S)
    assert "the log is gone" in ended["warm"]["refused"]
    assert ended["warm"]["dirty_pages_at_switchover"] == UNITS


def test_a_cancelled_one_leaves_the_guest_where_it_is(warming):
    for times in range(5):
        source = warming.source()
        guest = Guest(source, list(range(UNITS)))
        migration_id = "vm%d" % times
        vmm = warming.start(source, {}, migration_id, switchover=False)
        harness.eventually(lambda: len(source.asked) > 5 * times, "it warms")
        warming.daemon.call("Cancel", id=migration_id)
        warming.daemon.wait_for_state(migration_id, "cancelled")
        vmm.expect_failure()
        assert not source.paused and guest.is_alive()


LIES = {
    "a region that is not there": stream.dirty(7, [1]),
    "units beyond the region": stream.dirty(0, [UNITS]),
    "a flag that is not known": stream.dirty(0, [1], 2),
    "a run that is cut": stream.frame(stream.DIRTY, bytes(16) + b"\x80"),
    "runs that wrap": stream.frame(stream.DIRTY, bytes(16) + stream.varint((1 << 64) - 1) * 2),
    "runs of nothing": stream.frame(stream.DIRTY, bytes(16) + bytes(4000)),
    "a vmstate": stream.frame(stream.VMSTATE, bytes(24)),
    "that it tracks, again": stream.tracked(),
    "pages": stream.pages(0, 0, 1, 0, bytes(UNIT)),
    "an answer to COMPLETE": stream.frame(stream.COMPLETE_ACK),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_what_was_written_ends_it_before_the_switchover(warming, lie):
    source = warming.source()
    source.send_harvest = lambda connection, found: connection.send(LIES[lie])
    vmm = warming.start(source, {"max_rounds": 3})
    warming.daemon.wait_for_state("vm1", "failed")
    vmm.expect_failure()
    assert not source.paused
