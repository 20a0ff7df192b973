# SPDX-License-Identifier: Apache-2.0
"""Who finds no place among those that come in (max-incoming) may wait for its turn."""
import json
import subprocess

import pytest

import harness
import pyvmm
from keeper import KeptDaemon
from test_admission import METRICS, budget, destination_vmm, info, refusals, source_vmm, too_large
from test_metrics import samples, value
from test_reload import reread

SIZE = 1 << 20

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


class Queue:
    """Guests that come to one daemon, one at a time; the first, vm1, is there and stays."""

    def __init__(self, host, text="[host]\nmax-incoming=1\n", **options):
        self.host = host
        self.path = host.dir / "own.conf"
        self.path.write_text(text)
        self.source = host.daemon("source")
        self.daemon = host.daemon("destination", extra=["--config", self.path, *METRICS], **options)
        self.vmms = {}
        self.attach("vm1")
        self.daemon.call("Start", id="vm1", switchover=False)
        self.source.wait_for_state("vm1", "warming")

    def attach(self, migration_id, size=SIZE):
        self.source.prepare_source(migration_id)
        self.daemon.prepare_destination(migration_id, self.source.address)
        source_vmm(self.host, self.source, migration_id, size)
        self.vmms[migration_id] = destination_vmm(self.host, self.daemon, migration_id, size)

    def wait(self, *migration_ids, size=SIZE, **options):
        for migration_id in migration_ids:
            self.attach(migration_id, size)
            now = self.daemon.call("Start", id=migration_id, switchover=False, queue=True, **options)
            assert now["state"] == "attached" and now["waiting"]["for"] == "turn"

    def places(self):
        """Who waits, in its order."""
        waiting = [m for m in self.daemon.call("List")["migrations"]
                   if m["waiting"] and m["waiting"]["for"] == "turn"]
        waiting.sort(key=lambda m: m["waiting"]["place"])
        assert [m["waiting"]["place"] for m in waiting] == list(range(1, len(waiting) + 1))
        return [m["id"] for m in waiting]

    def leave(self, migration_id):
        self.daemon.call("Cancel", id=migration_id)
        self.daemon.wait_for_state(migration_id, "cancelled")


def test_they_come_by_priority_and_then_as_they_came(host):
    queue = Queue(host)
    queue.wait("vm2", "vm3")
    queue.wait("vm4", priority=5)
    queue.wait("vm5")
    assert queue.places() == ["vm4", "vm2", "vm3", "vm5"]
    reason = queue.daemon.call("Get", id="vm2")["reason"]
    assert "waits for its turn" in reason and "place 2 of 4" in reason and "max-incoming, 1" in reason
    assert budget(queue.daemon)["queued"] == 4 and "waiting to come in   4" in info(queue.daemon)
    assert value(samples(queue.daemon), "postcopyd_migrations_queued") == 4
    # Who waits was not refused.
    assert refusals(queue.daemon, "incoming") == 0
    # Again: its time is kept, and its priority is another.
    queue.daemon.call("Start", id="vm3", switchover=False, queue=True, priority=1)
    assert queue.places() == ["vm4", "vm3", "vm2", "vm5"]
    queue.leave("vm3")
    # Its VMM has gone.
    queue.vmms["vm5"].close()
    queue.daemon.wait_for_state("vm5", "prepared")
    assert queue.places() == ["vm4", "vm2"]
    queue.leave("vm1")
    queue.source.wait_for_state("vm4", "warming")
    assert queue.places() == ["vm2"] and queue.source.state("vm2") == "attached"
    queue.leave("vm4")
    queue.source.wait_for_state("vm2", "warming")
    assert queue.places() == []


def test_nobody_passes_those_that_wait(host):
    """The place that a limit of 2 makes is the first one's, and then there is none again."""
    queue = Queue(host)
    queue.wait("vm2", "vm3")
    queue.attach("vm4")
    with pytest.raises(harness.ControlError) as caught:
        queue.daemon.call("Start", id="vm4")
    assert caught.value.reason == "TOO_MANY" and "2 wait for that" in caught.value.message
    reread(queue.daemon, queue.path, "[host]\nmax-incoming=2\n")
    queue.source.wait_for_state("vm2", "warming")
    assert queue.places() == ["vm3"]
    with pytest.raises(harness.ControlError):
        queue.daemon.call("Start", id="vm4")
    reread(queue.daemon, queue.path, "")
    queue.source.wait_for_state("vm3", "warming")
    queue.daemon.call("Start", id="vm4", switchover=False, queue=True, priority=100)
    queue.source.wait_for_state("vm4", "warming")


@pytest.mark.parametrize("fields, named", (({"queue": True, "priority": 101}, "priority"),
                                           ({"priority": 1}, "priority")))
def test_a_priority_that_is_none_is_refused(host, fields, named):
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", "127.0.0.1:1")
    with pytest.raises(harness.ControlError) as caught:
        daemon.call("Start", id="vm1", **fields)
    assert caught.value.code == "INVALID_ARGUMENT" and named in caught.value.message


def test_it_outlives_the_daemon(host):
    queue = Queue(host, kind=KeptDaemon)
    queue.wait("vm2", warm={"max_rounds": 3})
    queue.wait("vm3", priority=7)
    queue.daemon.kill()
    queue.daemon.start()
    harness.eventually(lambda: queue.places() == ["vm3", "vm2"], "they wait as before")
    queue.leave("vm1")
    queue.source.wait_for_state("vm3", "warming")
    queue.leave("vm3")
    queue.source.wait_for_state("vm2", "warming")
    assert queue.daemon.call("Get", id="vm2")["warm"]["policy"]["max_rounds"] == 3


def test_who_finds_no_room_when_its_turn_comes_fails(host):
    """Its guest runs on, and whoever watches hears of it."""
    queue = Queue(host, "[host]\nmax-incoming=1\nmemory-check=no\n")
    queue.wait("vm2", size=too_large())
    queue.wait("vm3")
    reread(queue.daemon, queue.path, "[host]\nmax-incoming=1\nmemory-check=yes\n")
    queue.leave("vm1")
    assert "no room here" in queue.daemon.wait_for_state("vm2", "failed")["reason"]
    assert queue.source.state("vm2") == "attached"
    # Its turn is the next one's.
    queue.source.wait_for_state("vm3", "warming")
    # Who would wait in vain is told at once, and one that did waits no more.
    reread(queue.daemon, queue.path, "[host]\nmax-incoming=1\nmemory-check=no\n")
    queue.wait("vm4")
    queue.wait("vm5", size=too_large())
    queue.attach("vm6", too_large())
    reread(queue.daemon, queue.path, "[host]\nmax-incoming=1\nmemory-check=yes\n")
    for migration_id in "vm5", "vm6":
        with pytest.raises(harness.ControlError) as caught:
            queue.daemon.call("Start", id=migration_id, queue=True)
        assert caught.value.reason == "OUT_OF_MEMORY"
    assert queue.places() == ["vm4"]


def test_who_is_told_no_waits_no_more(host):
    """He may have gone elsewhere with it: it was started here all the same when its turn came."""
    queue = Queue(host, kind=KeptDaemon)
    queue.wait("vm2", "vm3")
    with pytest.raises(harness.ControlError) as caught:
        queue.daemon.call("Start", id="vm2")
    assert caught.value.reason == "TOO_MANY"
    now = queue.daemon.call("Get", id="vm2")
    assert now["state"] == "attached" and not now["waiting"] and not now["reason"]
    assert queue.places() == ["vm3"]
    # Nor in what the next process reads.
    queue.daemon.kill()
    queue.daemon.start()
    harness.eventually(lambda: queue.places() == ["vm3"], "one waits as before")
    queue.leave("vm1")
    queue.source.wait_for_state("vm3", "warming")
    queue.leave("vm3")
    # Nobody is ahead of it: there is a place, and it is not started.
    assert queue.daemon.state("vm2") == "attached"
    queue.daemon.call("Start", id="vm2", switchover=False)
    queue.source.wait_for_state("vm2", "warming")


def test_what_is_held_too_long_makes_room(host):
    """It kept its place, and the memory that it was promised, for as long as nobody looked."""
    queue = Queue(host, "[host]\nmax-incoming=1\nhold-timeout=0\n")
    queue.wait("vm2")
    held = harness.eventually(lambda: queue.daemon.call("Get", id="vm1")["waiting"], "what it waits for")
    assert held["for"] == "switchover" and held["elapsed_ms"] > 0
    assert budget(queue.daemon)["held"] == 1
    assert "of these held        1, until Switchover" in info(queue.daemon)
    assert value(samples(queue.daemon), "postcopyd_migrations_held") == 1
    reread(queue.daemon, queue.path, "[host]\nmax-incoming=1\nhold-timeout=1\n")
    reason = queue.daemon.wait_for_state("vm1", "failed")["reason"]
    assert "held for 1 s, and nobody has said Switchover (hold-timeout)" in reason
    queue.daemon.wait_for_log("its turn has come")
    # Its guest was never asked to pause, and the other is held as long as that, and no longer.
    queue.source.wait_for_state("vm1", "cancelled")
    assert "hold-timeout" in queue.daemon.wait_for_state("vm2", "failed")["reason"]


def test_postcopyctl_waits(host):
    queue = Queue(host)
    queue.attach("vm2")
    command = [harness.BUILD / "src/ctl/postcopyctl", "start", "vm2", "--no-switchover", "--control",
               queue.daemon.control_path]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=harness.DEADLINE_S)
    assert refused.returncode == 1 and "max-incoming" in refused.stderr
    done = subprocess.run([*command, "--priority", "3", "--json"], capture_output=True, text=True,
                          timeout=harness.DEADLINE_S)
    waiting = json.loads(done.stdout)["waiting"]
    assert (waiting["for"], waiting["place"]) == ("turn", 1)
