# SPDX-License-Identifier: Apache-2.0
"""As many migrations at once as the fault tracer has slots, through one pair of daemons."""
import json
import pathlib
import subprocess
import sys
import time

import pytest

import harness
import pyvmm
from test_metrics import METRICS, samples, value
from test_migrate import Pair

GUESTS = 64
SIZE = 4 << 20
# What the daemon remembers of a migration that is over, what its connections' threads leave in the
# allocator's arenas, and chance.
KEPT_KIB = 640
# What at least is free in these arenas when all of them have ended: 6 MiB at a source, 11 at a destination.
GIVEN_BACK_KIB = 2048
# Those before bulk begins: the tracer may miss one or two (docs/tracing.md).
STALLS_MIN = 10

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


class Guests:
    """guests.py, and what it says."""

    def __init__(self, host, pair, ids):
        with open(host.dir / "guests.log", "wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, pathlib.Path(__file__).with_name("guests.py"),
                 pair.source.vmm_path, pair.destination.vmm_path, str(SIZE), *ids],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self.lines = harness.Lines(self.popen.stdout.fileno(), "guests.py")
        self.log = host.dir / "guests.log"
        self.n = len(ids)
        host.later(self.close)

    def wait_for_all(self, event):
        """What each guest says, by id."""
        deadline = time.monotonic() + 2 * harness.DEADLINE_S
        said = {}
        while len(said) < self.n:
            line = self.lines.next(deadline)
            if line is None:
                raise harness.Failure("guests.py ended: %s" % self.log.read_text()[-2000:])
            status = json.loads(line)
            assert status["event"] == event, status
            said[status["id"]] = status
        return said

    def close(self):
        self.popen.stdin.close()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self.popen.stdout.close()


def check_metrics(pair, migrations):
    source, destination = samples(pair.source), samples(pair.destination)
    for found, role in ((source, "source"), (destination, "destination")):
        assert value(found, "postcopyd_migrations_total", role=role,
                     result="complete") == len(migrations)
    assert value(destination, "postcopyd_faults_total", kind="remote") == \
        sum(m["faults"]["remote"] for m in migrations)
    assert value(destination, "postcopyd_pages_missing") == 0
    kind = migrations[0]["guest_stall_us"]["source"]
    if kind != "daemon":
        assert value(destination, "postcopyd_guest_stall_seconds_count", source=kind) == \
            sum(m["guest_stall_us"]["count"] for m in migrations)


def move(pair, ids):
    """All of them at the same time. Returns the destination's migrations."""
    for name in ids:
        pair.source.prepare_source(name)
        pair.destination.prepare_destination(name, pair.source.address, streams=1, bulk=False,
                                             prefetch=False)
    guests = Guests(pair.host, pair, ids)
    guests.wait_for_all("attached")
    for name in ids:
        pair.start(name)
    guests.wait_for_all("touched")
    assert value(samples(pair.destination), "postcopyd_migrations_active", role="destination",
                 state="postcopy") == len(ids)
    for name in ids:
        pair.destination.call("SetLimits", id=name, bulk=True)
    guests.popen.stdin.close()
    for result in guests.wait_for_all("result").values():
        assert (result["pages_checked"], result["pages_bad"]) == (SIZE // 4096, 0), result
    assert guests.popen.wait(harness.DEADLINE_S) == 0
    for name in ids:
        pair.source.wait_for_state(name, "complete")
    return [pair.destination.wait_for_state(name, "complete") for name in ids]


def test_64_guests_move_at_the_same_time(host):
    pair = Pair(host, extra=METRICS)
    daemons = (pair.source, pair.destination)
    migrations = move(pair, ["first"])
    before = [daemon.resources() for daemon in daemons]
    migrations += move(pair, ["vm%d" % number for number in range(GUESTS)])
    # Each had a slot of the tracer, where there is one.
    assert "stalls are not measured" not in pair.destination.log()
    for migration in migrations:
        assert migration["guest_stall_us"]["count"] >= STALLS_MIN, migration
        assert migration["guest_stall_us"]["source"] == migrations[0]["guest_stall_us"]["source"]
    check_metrics(pair, migrations)
    for daemon, was in zip(daemons, before):
        harness.eventually(lambda: all(daemon.resources()[what] <= was[what]
                                       for what in ("fds", "threads")),
                           "%s is back at %s" % (daemon.name, was))
    # The buffers of their connections do not stay. (A destination also keeps the last ones' reports.)
    if not harness.sanitizer():
        assert pair.source.resources()["rss_kib"] <= before[0]["rss_kib"] + GUESTS * KEPT_KIB


@pytest.mark.skipif(harness.sanitizer() != "", reason="a sanitizer's allocator keeps what it likes")
def test_what_their_threads_leave_is_given_back_when_none_moves_any_more(host):
    """Each thread has an arena, and what is free there stayed with the daemon."""
    pair = Pair(host, extra=METRICS)
    daemons = (pair.source, pair.destination)
    pair.source.prepare_source("held")
    pair.destination.prepare_destination("held", pair.source.address)
    content = pyvmm.guest_content(SIZE)
    for vmm in (pyvmm.SourceVmm(pair.source, "held", content),
                pyvmm.DestinationVmm(pair.destination, "held", SIZE)):
        host.later(vmm.close)
    pair.destination.call("Start", id="held", switchover=False)
    harness.eventually(lambda: pair.destination.call("Get", id="held")["tls"], "it is connected")
    move(pair, ["vm%d" % number for number in range(GUESTS)])
    for name in ("serve-control", "serve-urgent"):
        harness.eventually(lambda: pair.source.threads(name) == 1, "all others' %s are gone" % name)
    kept = [daemon.resources()["rss_kib"] for daemon in daemons]
    pair.destination.call("Cancel", id="held")
    for daemon, was in zip(daemons, kept):
        harness.eventually(lambda: daemon.resources()["rss_kib"] <= was - GIVEN_BACK_KIB,
                           "%s has less than %d KiB" % (daemon.name, was))
