# SPDX-License-Identifier: Apache-2.0
"""An id is the orchestrator's: it names what is under way, and what has ended does not stand in the
way of the next migration of the same VM, on whichever daemon and in whichever role."""
import errno
import os

import pytest

import harness
import pyvmm
from keeper import KeptDaemon, restart
from test_takeover import kept

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))
SIZE = 1 << 20
OTHER_TOKEN = "6b" * 32


def history(daemon, migration_id):
    """(role, state) of those of that id, the newest first."""
    return [(m["role"], m["state"]) for m in daemon.call("List")["migrations"]
            if m["id"] == migration_id]


def refused(daemon, method, **params):
    with pytest.raises(harness.ControlError) as caught:
        daemon.call(method, **params)
    return caught.value


def migrate(source, destination, migration_id, token=harness.TOKEN):
    """One migration, to its end, with VMMs without vCPUs."""
    content = pyvmm.guest_content(SIZE)
    source.prepare_source(migration_id, token=token)
    destination.prepare_destination(migration_id, source.address, token=token, bulk=False)
    with pyvmm.SourceVmm(source, migration_id, content) as source_vmm, \
            pyvmm.DestinationVmm(destination, migration_id, SIZE) as destination_vmm:
        destination.call("Start", id=migration_id)
        source_vmm.pause()
        destination_vmm.load()
        destination.call("SetLimits", id=migration_id, bulk=True)
        for vmm in (source_vmm, destination_vmm):
            while vmm.receive()[0] != pyvmm.COMPLETE:
                pass
        assert os.pread(destination_vmm.memory_fd, SIZE, 0) == content


@pytest.fixture
def pair(host):
    both = ["postcopy:source", "postcopy:destination"]
    return [host.daemon(side, allow=both, kind=KeptDaemon) for side in ("source", "destination")]


def test_the_first_try_failed(host, pair):
    """The source's host was down. The same Prepare again found the failed one, and its VMM could
    not attach: the guest could not be moved under its name until the daemon was started anew."""
    a, b = pair
    b.prepare_destination("vm1", "127.0.0.1:1")
    first = pyvmm.DestinationVmm(b, "vm1", SIZE)
    host.later(first.close)
    b.call("Start", id="vm1")
    assert b.wait_for_state("vm1", "failed")["state"] == "failed"
    # Its VMM has not even gone.
    assert b.prepare_destination("vm1", "127.0.0.1:1")["state"] == "prepared"
    again = pyvmm.DestinationVmm(b, "vm1", SIZE)
    host.later(again.close)
    assert b.call("Cancel", id="vm1")["state"] == "cancelled"
    migrate(a, b, "vm1", OTHER_TOKEN)
    assert history(b, "vm1") == [("destination", "complete"), ("destination", "cancelled"),
                                 ("destination", "failed")]
    assert a.state("vm1") == "complete"


def test_there_and_back_again(pair):
    """Back to where the guest came from, and there once more: each Prepare was refused, for the id
    was there with another role. Both daemons are killed in between: all is told apart still."""
    a, b = pair
    for source, destination in ((a, b), (b, a), (a, b)):
        migrate(source, destination, "web1")
        restart(pair)
    for daemon, roles in ((a, ["source", "destination", "source"]),
                          (b, ["destination", "source", "destination"])):
        assert history(daemon, "web1") == [(role, "complete") for role in roles]
        assert [n for n in daemon.store.names() if n.startswith("record.")] == [
            "record.web1", "record.web1@2", "record.web1@3"]


@pytest.mark.parametrize("role", ["source", "destination"])
def test_who_comes_before_it_is_prepared_again_is_told_so(host, role):
    """An adapter is started as its VMM is, and that may be before the Prepare: it waits where nothing is
    prepared. What had ended by that id told it something else, and it gave up: there was no way back."""
    daemon = host.daemon("source", allow=["postcopy:source", "postcopy:destination"])

    def come():
        fd = pyvmm.memfd(pyvmm.guest_content(SIZE))
        with pyvmm.Socket(daemon.vmm_path) as vmm:
            vmm.send(pyvmm.attach(pyvmm.SOURCE, "vm1", [pyvmm.Region(SIZE)]), [fd])
            os.close(fd)
            return vmm.expect_error()
    assert come()[0] == errno.ENOENT
    if role == "source":
        daemon.prepare_source("vm1")
    else:
        daemon.prepare_destination("vm1", "127.0.0.1:1")
        # Its other half may come to be here yet.
        code, text = come()
        assert code == errno.ENOENT and "as destination alone" in text
    daemon.call("Cancel", id="vm1")
    code, text = come()
    assert code == errno.ENOENT and "prepare it again" in text


def test_both_halves_at_one_daemon(host):
    """A VMM is replaced on its host: the daemon is both ends, and was told that the id is taken."""
    daemon = host.daemon("source", allow=["postcopy:source"], kind=KeptDaemon)
    content = pyvmm.guest_content(SIZE)
    daemon.prepare_source("local")
    daemon.prepare_destination("local", daemon.address, bulk=False)
    source = pyvmm.SourceVmm(daemon, "local", content)
    destination = pyvmm.DestinationVmm(daemon, "local", SIZE)
    for vmm in (source, destination):
        host.later(vmm.close)
    # Which of them?
    for method in ("Get", "Cancel", "GetReport"):
        error = refused(daemon, method, id="local")
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert "both halves" in error.message
    for role in ("source", "destination"):
        migration = daemon.call("Get", id="local", role="ROLE_" + role.upper())
        assert (migration["role"], migration["state"]) == (role, "attached")
    # What only one of them can do says it by itself.
    daemon.call("Start", id="local")
    source.pause()
    destination.load()
    daemon.crash_and_restart()
    for role in ("source", "destination"):
        harness.eventually(lambda: daemon.call("Get", id="local", role="ROLE_" + role.upper())
                           ["state"] == "postcopy", "the %s goes on" % role)
    daemon.call("SetLimits", id="local", bulk=True)
    for vmm in (source, destination):
        while vmm.receive()[0] != pyvmm.COMPLETE:
            pass
    assert os.pread(destination.memory_fd, SIZE, 0) == content
    harness.eventually(lambda: history(daemon, "local") == [("destination", "complete"),
                                                            ("source", "complete")], "the end")


def test_one_of_an_id_and_role_at_a_time(pair):
    a, b = pair
    a.prepare_source("vm1")
    error = refused(a, "Prepare", id="vm1", role="source", token=OTHER_TOKEN)
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "MIGRATION_EXISTS")
    b.prepare_destination("vm1", "127.0.0.1:1")
    error = refused(b, "Start", id="vm1")
    assert error.reason == "WRONG_STATE"
    error = refused(a, "Start", id="vm1")
    assert error.reason == "WRONG_ROLE"


def test_what_has_ended_is_deleted_by_command(pair):
    """Nothing could be forgotten but by 32 more migrations."""
    a, _ = pair
    for _ in range(2):
        a.prepare_source("vm1")
        a.call("Cancel", id="vm1")
    a.prepare_source("vm1")
    assert a.store.names().count("record.vm1@2") == 1
    assert a.call("Delete", id="vm1") == 2
    assert history(a, "vm1") == [("source", "prepared")]
    error = refused(a, "Delete", id="vm1")
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    a.call("Cancel", id="vm1")
    a.call("Delete", id="vm1", role="ROLE_SOURCE")
    error = refused(a, "Delete", id="vm1")
    assert (error.code, error.reason) == ("NOT_FOUND", "MIGRATION_NOT_FOUND")
    harness.eventually(lambda: not kept(a), "the store has let go of %s" % kept(a))


def test_ended_ones_are_kept_by_number_and_time(host):
    """A burst of short ones pushed out what an orchestrator had not looked at yet; and the last 32
    were kept for ever, with their tokens."""
    daemon = host.daemon("source", kind=KeptDaemon,
                         extra=["--max-ended", "2", "--ended-timeout", "1"])
    with daemon.control() as control:
        for number in range(4):
            control.call("Prepare", id="vm%d" % number, role="source", token=harness.TOKEN)
            control.call("Cancel", id="vm%d" % number)
        control.call("Prepare", id="vm4", role="source", token=harness.TOKEN)
        assert len(control.call("List")["migrations"]) <= 3
        harness.eventually(lambda: [m["id"] for m in control.call("List")["migrations"]] == ["vm4"],
                           "only what has not ended is left")
