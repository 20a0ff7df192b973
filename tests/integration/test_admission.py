# SPDX-License-Identifier: Apache-2.0
"""A guest is let in where there is room for it. Who is not is told the numbers, and runs on where it
is. Guests here are larger than the host, and empty: nothing of them is ever touched."""
import json
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest

import harness
import pyvmm
from stream import CONTROL, dial_stream
from test_metrics import samples, value
from test_reload import reread
from test_warm_destination import UNITS, Warming, page

GIB = 1 << 30
SIZE = 1 << 20
METRICS = ["--metrics-listen", "127.0.0.1:0"]
# Joins a cgroup, attaches as a destination, and prints what it is told.
ATTACH_WITHIN = """
import os, pathlib, sys, types
sys.path.insert(0, sys.argv[1])
import pyvmm
pathlib.Path(sys.argv[2], "cgroup.procs").write_text("0")
daemon = types.SimpleNamespace(vmm_path=sys.argv[3])
def memory(size):
    fd = pyvmm.memfd(size=size)
    if "allocated" in sys.argv:
        os.posix_fallocate(fd, 0, size)
    return fd
try:
    vmm = pyvmm.DestinationVmm(daemon, sys.argv[4], int(sys.argv[5]), make=memory)
    print("attached", flush=True)
    if "stays" in sys.argv:
        sys.stdin.read()
except Exception as told:
    print(told)
"""

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


def meminfo(key):
    text = pathlib.Path("/proc/meminfo").read_text()
    return int(re.search(key + r":\s+(\d+) kB", text).group(1)) * 1024


def whole_gib(size):
    return int(size) // GIB * GIB + GIB


def too_large():
    return whole_gib(2 * meminfo("MemTotal"))


class Empty:
    """The content of a guest that has none, of any size."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


def source_vmm(host, daemon, migration_id, size):
    vmm = pyvmm.SourceVmm(daemon, migration_id, Empty(size),
                          make=lambda content: pyvmm.memfd(size=len(content)))
    host.later(vmm.close)
    return vmm


def destination_vmm(host, daemon, migration_id, size):
    vmm = pyvmm.DestinationVmm(daemon, migration_id, size)
    host.later(vmm.close)
    return vmm


def attach_refused(daemon, migration_id, size):
    """What a destination VMM of so much memory is told."""
    with pytest.raises(harness.Failure) as told:
        pyvmm.DestinationVmm(daemon, migration_id, size)
    return str(told.value)


def info(daemon, *options):
    return subprocess.run([harness.BUILD / "src/ctl/postcopyctl", "info", *options, "--control",
                           daemon.control_path], capture_output=True, text=True, check=True,
                          timeout=harness.DEADLINE_S).stdout


def budget(daemon):
    return json.loads(info(daemon, "--json"))["budget"]


def refusals(daemon, reason):
    return value(samples(daemon), "postcopyd_admissions_refused_total", reason=reason)


def prepare(daemon, *migration_ids, **options):
    for migration_id in migration_ids:
        daemon.prepare_destination(migration_id, "127.0.0.1:1", **options)


def test_what_is_larger_than_the_host_is_refused(host):
    """It attached, was moved, and its fills failed with the guest running here."""
    daemon = host.daemon("destination", extra=METRICS)
    prepare(daemon, "vm1")
    size = too_large()
    told = attach_refused(daemon, "vm1", size)
    assert "no room here: the guest has %d MiB to receive" % (size >> 20) in told
    assert "memory-check=no" in told
    assert daemon.state("vm1") == "prepared"
    assert refusals(daemon, "memory") == 1
    # And a smaller one may come.
    destination_vmm(host, daemon, "vm1", SIZE)


def test_overcommitted_hosts_turn_it_off(host):
    daemon = host.daemon("destination", extra=["--memory-check", "no"])
    prepare(daemon, "vm1")
    destination_vmm(host, daemon, "vm1", too_large())
    assert not budget(daemon)["memory_check"]


def test_what_is_promised_is_not_promised_again(host):
    """Each had room by itself."""
    source = host.daemon("source")
    daemon = host.daemon("destination", extra=METRICS)
    size = whole_gib(meminfo("MemAvailable") * 0.6)
    source.prepare_source("vm1")
    source_vmm(host, source, "vm1", size)
    daemon.prepare_destination("vm1", source.address)
    prepare(daemon, "vm2")
    # One that is never started keeps nobody out.
    destination_vmm(host, daemon, "vm1", size)
    assert budget(daemon)["memory_promised_bytes"] == 0
    second = pyvmm.DestinationVmm(daemon, "vm2", size)
    second.close()
    daemon.wait_for_state("vm2", "prepared")
    daemon.call("Start", id="vm1", switchover=False)
    source.wait_for_state("vm1", "warming")
    told = attach_refused(daemon, "vm2", size)
    assert "%d MiB are promised to other guests" % (size >> 20) in told
    now = budget(daemon)
    assert now["memory_promised_bytes"] == size and now["memory_available_bytes"] > 0
    assert value(samples(daemon), "postcopyd_memory_promised_bytes") == size
    assert re.search(r"memory +\d+ MiB free, %d MiB of it promised" % (size >> 20), info(daemon))
    daemon.call("Cancel", id="vm1")
    daemon.wait_for_state("vm1", "cancelled")
    destination_vmm(host, daemon, "vm2", size)


def test_it_is_looked_at_again_before_the_pause(host):
    """A warm phase lasts: what was free at its beginning may be gone. The guest is not paused."""
    path = host.dir / "own.conf"
    path.write_text("[host]\nmemory-check=no\n")
    source = host.daemon("source")
    daemon = host.daemon("destination", extra=["--config", path])
    size = too_large()
    source.prepare_source("vm1")
    daemon.prepare_destination("vm1", source.address)
    guest = source_vmm(host, source, "vm1", size)
    destination_vmm(host, daemon, "vm1", size)
    daemon.call("Start", id="vm1", switchover=False)
    source.wait_for_state("vm1", "warming")
    reread(daemon, path, "[host]\nmemory-check=yes\n")
    daemon.call("Switchover", id="vm1")
    assert "no room here" in daemon.wait_for_state("vm1", "failed")["reason"]
    source.wait_for_state("vm1", "cancelled")
    # Not PAUSE.
    guest.expect(pyvmm.RESUME)


def test_memory_that_came_is_not_promised_again(host):
    """What is dirty again after a round has its memory: it counted twice, and kept others out."""
    warming = Warming(host)
    source = warming.source()
    warming.start(source, {}, switchover=False)
    warming.wait(lambda warm: warm["rounds"] >= 1, "a round is over")
    warming.daemon.call("SetLimits", id="vm1", bandwidth_bytes_per_s=1)
    for unit in range(UNITS):
        source.write(unit, page(unit + 1))
    warming.wait(lambda warm: warm["dirty_bytes"] > 0, "it is dirty")
    assert budget(warming.daemon)["memory_promised_bytes"] == 0


def pair_of(host, source_extra=(), destination_extra=()):
    source = host.daemon("source", extra=source_extra)
    daemon = host.daemon("destination", extra=destination_extra)
    for migration_id in "vm1", "vm2":
        source.prepare_source(migration_id)
        daemon.prepare_destination(migration_id, source.address)
        source_vmm(host, source, migration_id, SIZE)
        destination_vmm(host, daemon, migration_id, SIZE)
    daemon.call("Start", id="vm1", switchover=False)
    source.wait_for_state("vm1", "warming")
    return source, daemon


def test_so_many_come_in(host):
    source, daemon = pair_of(host, destination_extra=[*METRICS, "--max-incoming", "1"])
    with pytest.raises(harness.ControlError) as caught:
        daemon.call("Start", id="vm2", switchover=False)
    assert caught.value.code == "RESOURCE_EXHAUSTED" and caught.value.reason == "TOO_MANY"
    assert "1 migrations are coming in (max-incoming)" in caught.value.message
    assert daemon.state("vm2") == "attached" and source.state("vm2") == "attached"
    assert refusals(daemon, "incoming") == 1
    now = budget(daemon)
    assert (now["incoming"], now["max_incoming"]) == (1, 1)
    daemon.call("Cancel", id="vm1")
    daemon.wait_for_state("vm1", "cancelled")
    daemon.call("Start", id="vm2", switchover=False)
    source.wait_for_state("vm2", "warming")


def test_so_many_leave(host):
    source, daemon = pair_of(host, source_extra=[*METRICS, "--max-outgoing", "1"])
    daemon.call("Start", id="vm2", switchover=False)
    reason = daemon.wait_for_state("vm2", "failed")["reason"]
    assert "1 migrations are leaving its host (max-outgoing" in reason
    # Its guest runs on, and may leave when there is room.
    assert source.state("vm2") == "attached"
    now = budget(source)
    assert (now["outgoing"], now["max_outgoing"]) == (1, 1)
    assert value(samples(source), "postcopyd_refused_total", door="pages", reason="limit") == 1


def test_who_was_let_in_comes_again(host):
    """Its connection was lost, and another one's limit is no reason to keep its guest waiting."""
    path = host.dir / "own.conf"
    path.write_text("")
    source, daemon = pair_of(host, source_extra=["--config", path])
    daemon.call("Start", id="vm2", switchover=False)
    source.wait_for_state("vm2", "warming")
    reread(source, path, "[host]\nmax-outgoing=1\n")
    daemon.call("Recover", id="vm2")
    daemon.call("Switchover", id="vm2")
    source.wait_for_state("vm2", "switching")


def test_who_was_let_in_begins_again(host, pki):
    """Its guest's VMM has attached anew meanwhile, and the place that it had is another's. Its guest would
    have stayed, though it was promised that it may come again."""
    source = host.daemon("source", extra=["--max-outgoing", "1"])
    first, other = b"A" * 16, b"B" * 16

    def dial(migration_id, **fields):
        connection, reply = dial_stream(source.port, pki.destination, CONTROL, migration_id, **fields)
        host.later(connection.close)
        return connection, reply[2][0]

    def refused(migration_id, **fields):
        with pytest.raises(AssertionError) as caught:
            dial(migration_id, **fields)
        return str(caught.value)
    for migration_id in "vm1", "vm2":
        source.prepare_source(migration_id)
    guest = pyvmm.SourceVmm(source, "vm1", bytes(SIZE))
    source_vmm(host, source, "vm2", SIZE)
    connection, epoch = dial("vm1", holder=first)
    source.wait_for_state("vm1", "warming")
    assert "max-outgoing" in refused("vm2", holder=other)
    connection.close()
    source.wait_for_state("vm1", "attached")
    guest.close()
    source.wait_for_state("vm1", "prepared")
    source_vmm(host, source, "vm1", SIZE)
    dial("vm2", holder=other)
    assert "attached anew" in refused("vm1", holder=first, epoch=epoch)
    assert "max-outgoing" in refused("vm1", holder=other)
    dial("vm1", holder=first)


def test_descriptors_run_short(host):
    daemon = host.daemon("destination", extra=METRICS)
    prepare(daemon, "vm1", streams=16)
    destination_vmm(host, daemon, "vm1", SIZE)
    open_now = budget(daemon)["descriptors"]
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (open_now + 30, 4096))
    with pytest.raises(harness.ControlError) as caught:
        daemon.call("Start", id="vm1")
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert "of %d at most, and this takes 40 more" % (open_now + 30) in caught.value.message
    assert daemon.state("vm1") == "attached"


# Of the cgroup; a daemon under ASan takes more than 64 MiB before it has a guest.
LIMIT = 256 << 20


@pytest.fixture
def cgroup(request):
    """A cgroup of our own whose memory is limited."""
    lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    legacy = [line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(",")]
    unified = [line[3:] for line in lines if line.startswith("0::")]
    if legacy:
        parent, limit = pathlib.Path("/sys/fs/cgroup/memory" + legacy[0]), "memory.limit_in_bytes"
    else:
        parent, limit = pathlib.Path("/sys/fs/cgroup" + unified[0]), "memory.max"
    path = parent / ("postcopyd-test-%d" % os.getpid())
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip("no cgroup can be made here: %s" % error)
    request.addfinalizer(path.rmdir)
    try:
        (path / limit).write_text(str(LIMIT))
    except OSError as error:
        pytest.skip("no memory limit can be set in %s: %s" % (path, error))
    return path


@pytest.fixture
def limited_daemon(host, cgroup):
    """Joins it before it is the daemon; it ends before the cgroup does."""
    join = ["sh", "-c", "echo 0 >%s/cgroup.procs && exec \"$@\"" % cgroup, "sh"]
    daemon = host.daemon("destination", extra=METRICS, prefix=join)
    yield daemon
    daemon.shut_down()


def test_what_the_daemon_writes_is_of_its_cgroup(host, cgroup, limited_daemon):
    """Bulk of a lazy fill is written by the daemon: its unit's MemoryMax= had it killed, with all the
    host's guests in its hands."""
    daemon = limited_daemon
    prepare(daemon, "vm1", map="lazy")
    prepare(daemon, "vm2")
    told = attach_refused(daemon, "vm1", 2 * LIMIT)
    assert "no room in cgroup" in told and cgroup.name in told and "the daemon's" in told
    assert "512 MiB to receive" in told and "limit of 256 MiB" in told
    assert refusals(daemon, "cgroup") == 1
    # By UFFDIO_COPY it is the VMM's, which has no limit; but not where it is warmed.
    destination_vmm(host, daemon, "vm2", 2 * LIMIT)
    with pytest.raises(harness.ControlError) as caught:
        daemon.call("Start", id="vm2", warm={"max_rounds": 1})
    assert caught.value.reason == "OUT_OF_MEMORY" and "no room in cgroup" in caught.value.message
    assert daemon.state("vm2") == "attached"


def within(cgroup, daemon, migration_id, size, *words):
    return [sys.executable, "-c", ATTACH_WITHIN, pathlib.Path(__file__).parent, cgroup,
            daemon.vmm_path, migration_id, str(size), *words]


def attach_within(*args):
    done = subprocess.run(within(*args), capture_output=True, text=True, check=True,
                          timeout=harness.DEADLINE_S)
    return done.stdout


def test_what_the_vmm_takes_is_of_its_cgroup(host, cgroup):
    daemon = host.daemon("destination")
    prepare(daemon, "vm1", "vm2")
    told = attach_within(cgroup, daemon, "vm1", 2 * LIMIT)
    assert "no room in cgroup" in told and cgroup.name in told and "the daemon's" not in told
    assert attach_within(cgroup, daemon, "vm2", LIMIT // 4) == "attached\n"


def test_what_others_there_are_promised_counts(host, cgroup):
    """Where their VMMs are counted is read once of each."""
    size = LIMIT * 5 // 8
    source, daemon = host.daemon("source"), host.daemon("destination")
    source.prepare_source("vm1")
    source_vmm(host, source, "vm1", size)
    daemon.prepare_destination("vm1", source.address)
    prepare(daemon, "vm2", "vm3")
    with subprocess.Popen(within(cgroup, daemon, "vm1", size, "stays"), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "attached\n"
        # Nobody has said that it comes.
        assert attach_within(cgroup, daemon, "vm2", size) == "attached\n"
        daemon.call("Start", id="vm1", switchover=False)
        source.wait_for_state("vm1", "warming")
        for _ in range(2):
            told = attach_within(cgroup, daemon, "vm2", size)
            assert "no room in cgroup" in told and "160 MiB are promised to other guests" in told
        # Elsewhere it takes nothing.
        destination_vmm(host, daemon, "vm3", size)
        first.stdin.close()


def test_what_an_attach_empties_is_free(host, cgroup):
    """A VMM that has allocated its memory before it attaches: what it held counted as taken, and as still
    to come, so it was refused for ever."""
    daemon = host.daemon("destination")
    prepare(daemon, "vm1")
    assert attach_within(cgroup, daemon, "vm1", LIMIT * 5 // 8, "allocated") == "attached\n"
