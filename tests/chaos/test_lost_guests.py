# SPDX-License-Identifier: Apache-2.0
"""The ways in which guests have been lost, each at random points of a migration. In the end a guest
is whole, has run in one place only, and no vCPU is stuck."""
import os
import resource
import time

import pytest

import harness
import pyvmm
from keeper import KeptDaemon
from scene import DEADLINE_S, PAGES, SPARE, Memory, Scene, assert_never_ran
from test_holder import pids_group  # noqa: F401: a fixture
from test_limits import leave_descriptors
from test_migrate import pytestmark as needs_kvm

pytestmark = needs_kvm

SIDES = [["source"], ["destination"], ["source", "destination"]]
# For how long something is short.
SHORT_S = 1
# How minivmm fills what its guest does not touch (src/minivmm/spare.c).
SPARE_PAGES, SPARE_BYTE = 128, b"\xb5"


def kill_some(scene):
    """At the same time. What was there before."""
    here = scene.breaks()
    killed = [getattr(scene, side) for side in scene.rng.choice(SIDES)]
    for daemon in killed:
        daemon.crash()
    for daemon in killed:
        daemon.start()
    return here


def write_a_quarter(fd):
    """Of more the daemon might think, on a busy host, that it takes too long, and refuse it."""
    os.pwrite(fd, b"U" * (PAGES * 1024), PAGES * 2048)


def write_here_and_there(fd):
    for page in range(0, PAGES, 16):
        os.pwrite(fd, b"U", page * 4096 + 7)


def preallocate_a_quarter(fd):
    os.posix_fallocate(fd, PAGES * 1024, PAGES * 1024)


POPULATE = [write_a_quarter, write_here_and_there, preallocate_a_quarter]


def test_sigkill_on_populated_memory(host, seed):
    """What was there passed for what had come: 4 of 5 runs were "complete" with 6-15 zero pages."""
    scene = Scene(host, seed, "populated memory, SIGKILL", backend="memfd",
                  populate=POPULATE[seed % len(POPULATE)])
    scene.go_to_a_point()
    scene.goes_on(kill_some(scene))
    scene.finish()


class Rival:
    """Another destination with the scene's id and token."""

    def __init__(self, scene):
        self.daemon = scene.host.daemon("destination", allow=["postcopy:source"], kind=KeptDaemon)
        self.daemon.call("List")
        scene.before[self.daemon] = self.daemon.resources()["fds"]
        scene.prepare_destination(self.daemon)
        self.vmm = scene.attach_destination(self.daemon)
        self.vmm.wait_for_event("attached")

    def end(self):
        return self.daemon.wait_for_state("vm1", "complete", "failed", deadline_s=DEADLINE_S)


def test_second_destination(host, seed):
    """Each was given the guest: two ran, or the source let go of what the first one lacked."""
    scene = Scene(host, seed, "second destination with the token")
    rival = Rival(scene)
    has_come = 0
    if scene.rng.random() < 0.4:
        rivals = [scene.destination, rival.daemon]
        scene.rng.shuffle(rivals)
        for daemon in rivals:
            daemon.call("Start", id="vm1")
    else:
        scene.go_to_a_point()
        has_come = scene.breaks()
        rival.daemon.call("Start", id="vm1")
        scene.goes_on(has_come)
    if scene.rng.random() < 0.5:
        scene.source.crash_and_restart()
    ends = {daemon: daemon.wait_for_state("vm1", "complete", "failed", deadline_s=DEADLINE_S)
            for daemon in (scene.destination, rival.daemon)}
    assert sorted(end["state"] for end in ends.values()) == ["complete", "failed"], ends
    loser = next(end for end in ends.values() if end["state"] == "failed")
    assert has_come <= 0 or loser is ends[rival.daemon]
    assert "another destination" in loser["reason"] or "over" in loser["reason"], loser["reason"]
    losing_vmm = rival.vmm
    if loser is ends[scene.destination]:
        losing_vmm = scene.destination_vmm
        scene.destination, scene.destination_vmm = rival.daemon, rival.vmm
        scene.daemons = [scene.source, rival.daemon]
    assert_never_ran(losing_vmm)
    scene.finish()


def test_discards_and_kills(host, seed):
    """A discard was lost with the daemon that had read it: the page's old bytes came back."""
    scene = Scene(host, seed, "discards all the time, SIGKILLs",
                  destination_vmm={"flags": ["discard"]})
    scene.go_to_a_point()
    for _ in range(3):
        scene.goes_on(kill_some(scene))
    scene.finish()


def test_pids_limit(pids_group, host, seed):
    """A thread that could not be had killed a guest that ran already."""
    join = ["sh", "-c", "echo $$ >%s/cgroup.procs; exec \"$@\"" % pids_group, "sh"]
    side = ("source", "destination")[seed % 2]
    prefixes = {"source": [], "destination": [], side: join}
    scene = Scene(host, seed, "threads run short for 1 s", prefixes=prefixes)
    limit = pids_group / "pids.max"
    host.later(lambda: limit.write_text("max"))

    def run_short():
        used = int((pids_group / "pids.current").read_text())
        limit.write_text(str(used + scene.rng.randrange(0, 6)))

    run_out(scene, run_short, lambda: limit.write_text("max"))


def test_descriptor_limit(host, seed):
    """A goodbye ended by EMFILE: the source's guest stood still for ever."""
    scene = Scene(host, seed, "descriptors run short for 1 s")
    daemon = scene.rng.choice(scene.daemons)

    def give_back():
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (4096, 4096))

    host.later(give_back)
    # One for who calls us, and some.
    run_out(scene, lambda: leave_descriptors(daemon, scene.rng.randrange(1, 5)),
            give_back)


def run_out(scene, run_short, give_back):
    """Something runs short before the start, or amid it, with all connections to be made anew."""
    if scene.rng.random() < 0.4:
        run_short()
        try:
            scene.destination.call("Start", id="vm1")
        except harness.ControlError:
            # Refused, and nothing has begun: it may be started again.
            give_back()
            assert scene.destination.state("vm1") == "attached"
            scene.destination.call("Start", id="vm1")
    else:
        scene.go_to_a_point()
        run_short()
    scene.proxy.cut()
    time.sleep(SHORT_S)
    give_back()
    scene.goes_on(scene.breaks())
    scene.finish_wherever_it_is()


def test_pages_that_can_not_be_read(host, seed):
    """One such page closed each connection that asked for it, and no other page came any more."""
    lost = seed % 8 + 1
    scene = Scene(host, seed, "pages that can't be read, SIGKILL", backend="anon",
                  source_vmm={"lose": lost}, destination_vmm={"run_after_complete": 60000})
    scene.go_to_a_point()
    scene.goes_on(kill_some(scene))

    def look():
        assert scene.get()["pages_poisoned"] == lost
        memory = Memory(scene.destination_vmm)
        for page in range(SPARE_PAGES):
            at = SPARE + page * pyvmm.PAGE
            if page < lost:
                with pytest.raises(OSError):
                    memory.read(at, pyvmm.PAGE)
            else:
                assert memory.read(at, pyvmm.PAGE) == SPARE_BYTE * pyvmm.PAGE
        memory.close()

    scene.finish(look)


@pytest.mark.parametrize("kind, said", [("blackhole", "Invalid argument"),
                                        ("prohibit", "Permission denied")],
                         ids=["blackhole", "prohibit"])
def test_route(host, seed, link, kind, said):
    """Its errno was on no list: a goodbye ended, and the source's guest stood still for ever."""
    scene = Scene(host, seed, "%s route (from its end)" % kind, link=link)
    scene.go_to_a_point()
    here = scene.breaks()
    if here <= PAGES:
        link.no_route("destination", kind)
        # Its end is heard, and that it is dialled again.
        scene.source.crash_and_restart()
        harness.eventually(lambda: said in scene.destination.log() + scene.get()["reason"]
                           or scene.present() > PAGES, "the destination meets the route")
        here = scene.breaks()
        link.no_route("destination", None)
    scene.goes_on(here)
    scene.finish_wherever_it_is()
