# SPDX-License-Identifier: Apache-2.0
"""A migration names its parties: who may attach, and who the other daemon is. Its id is no secret, and
whoever else may connect to the VMM socket got the guest by it, or gave his own for it."""
import ctypes
import os
import subprocess

import pytest

import harness
import pyvmm
import stream
from keeper import KeptDaemon

SIZE = 1 << 20
NOBODY, SOMEBODY = 65534, 65533
CLONE_NEWNS = 0x20000
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
needs_userfaultfd = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                       reason=str(pyvmm.can_userfault()))


def attach_one(daemon):
    pyvmm.SourceVmm(daemon, "vm1", pyvmm.guest_content(SIZE))


def attach_from_a_child(daemon, become=lambda: None, attach=attach_one):
    """A VMM of its own process. Returns "attached", or what it was told."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become()
            attach(daemon)
            said = "attached"
        except BaseException as error:  # pylint: disable=broad-except
            said = repr(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def prepare(daemon, **parties):
    return daemon.prepare_source("vm1", parties=parties)


def assert_waits_on(daemon, text):
    """Nothing is lost by one who may not, and the log says who it was."""
    assert daemon.state("vm1") == "prepared"
    assert text in daemon.log()


def attach_and_leave(daemon):
    pyvmm.SourceVmm(daemon, "vm1", pyvmm.guest_content(SIZE)).close()


def become(uid):
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(uid)


@needs_root
def test_only_the_users_that_are_named_may_attach(host):
    host.dir.chmod(0o755)
    daemon = host.daemon("source", extra=["--vmm-group", "nogroup"])

    assert prepare(daemon, uids=[NOBODY, 1001])["parties"]["uids"] == [1001, NOBODY]
    for uid in (SOMEBODY, 0):
        told = attach_from_a_child(daemon, lambda uid=uid: become(uid) if uid else None)
        text = "uid %d may not attach to migration" % uid
        assert text in told
        assert_waits_on(daemon, text)
    assert attach_from_a_child(daemon, lambda: become(NOBODY)) == "attached"


@needs_root
def test_who_attaches_again_is_looked_at_again(host):
    """Whoever could name the VMM's process took the place of an adapter that was away."""
    host.dir.chmod(0o755)
    daemon = host.daemon("source", extra=["--vmm-group", "nogroup"])
    vmm = subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=NOBODY, group=NOBODY,
                           extra_groups=[])
    host.later(vmm.communicate)
    prepare(daemon, uids=[NOBODY], pid=vmm.pid)
    pidfd = os.pidfd_open(vmm.pid)

    def adapter(flags, regions, fds):
        def attach(daemon):
            sock = pyvmm.Socket(daemon.vmm_path)
            sock.send(pyvmm.attach(pyvmm.SOURCE, "vm1", regions, 0, pyvmm.WITH_PIDFD | flags),
                      [*fds, pidfd])
            sock.expect(pyvmm.ATTACHED)
        return attach

    first = adapter(0, [pyvmm.Region(SIZE)], [pyvmm.memfd(size=SIZE)])
    again = adapter(pyvmm.AGAIN, [], [])
    assert attach_from_a_child(daemon, lambda: become(NOBODY), first) == "attached"
    harness.eventually(lambda: "adapter detached" in daemon.call("Get", id="vm1")["reason"],
                       "it is away")
    assert "uid 0 may not attach to migration" in attach_from_a_child(daemon, attach=again)
    assert attach_from_a_child(daemon, lambda: become(NOBODY), again) == "attached"


def test_only_the_process_that_is_named_may_attach(host):
    daemon = host.daemon("source")
    prepare(daemon, pid=os.getpid())
    told = attach_from_a_child(daemon)
    assert "may not attach to migration" in told and str(os.getpid()) not in told
    assert_waits_on(daemon, "may not attach to migration")
    attach_and_leave(daemon)


def own_cgroup():
    with open("/proc/self/cgroup", encoding="ascii") as file:
        own = [line.strip()[3:] for line in file if line.startswith("0::")]
    return own[0] if own else None


@pytest.mark.skipif(own_cgroup() is None, reason="no unified cgroup hierarchy")
def test_only_who_is_in_the_cgroup_that_is_named_may_attach(host):
    daemon = host.daemon("source")
    prepare(daemon, cgroup="/no-such.slice/vm7")
    told = attach_from_a_child(daemon)
    assert "in cgroup" in told and own_cgroup() in told and "may not attach" in told
    assert_waits_on(daemon, "may not attach to migration")
    daemon.call("Cancel", id="vm1")
    prepare(daemon, cgroup=own_cgroup())
    attach_and_leave(daemon)


def enter_cgroup(root, name):
    """In a mount namespace of its own; the hierarchy is the host's."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNS) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "cgroup2", "none", root], check=True)
    os.makedirs("%s/%s" % (root, name), exist_ok=True)
    with open("%s/%s/cgroup.procs" % (root, name), "w", encoding="ascii") as file:
        file.write("0")


@needs_root
def test_cgroup_below_the_one_that_is_named_will_do_and_one_beside_it_not(host):
    daemon, root = host.daemon("source"), host.dir / "cgroup"
    root.mkdir()
    name = "postcopy-test-%d" % os.getpid()

    def remove():
        enter_cgroup(root, ".")
        for path in ("%s/below" % name, name, name + "0"):
            try:
                os.rmdir("%s/%s" % (root, path))
            except FileNotFoundError:
                pass

    prepare(daemon, cgroup="/" + name)
    told = attach_from_a_child(daemon, lambda: enter_cgroup(root, name + "0"))
    if "CalledProcessError" in told or "OSError" in told or "PermissionError" in told:
        pytest.skip("no cgroup can be made here: " + told)
    host.later(lambda: subprocess.run(["true"], preexec_fn=remove, check=True))
    assert "in cgroup \"/%s0\", may not attach" % name in told
    assert attach_from_a_child(daemon, lambda: enter_cgroup(root, name + "/below")) == "attached"


def test_next_process_checks_the_same(host):
    """They are Prepare's, and so of the record."""
    daemon = host.daemon("source", kind=KeptDaemon)
    parties = {"uids": [1001], "pid": 7, "cgroup": "/machine.slice", "peer": "DNS:*.example.org"}
    assert prepare(daemon, **parties)["parties"] == parties
    daemon.crash_and_restart()
    assert daemon.call("Get", id="vm1")["parties"] == parties
    assert "uid %d may not attach to migration" % os.getuid() in attach_from_a_child(daemon)
    assert_waits_on(daemon, "may not attach to migration")


@pytest.mark.parametrize("changed", [{}, {"uids": [1]}, {"uids": [0, 1]}, {"uids": [0], "pid": 1},
                                     {"uids": [0], "cgroup": "/a"}, {"uids": [0], "peer": "b"}],
                         ids=str)
def test_prepare_with_other_parties_is_not_the_same(host, changed):
    daemon = host.daemon("source")
    prepare(daemon, uids=[0])
    prepare(daemon, uids=[0])
    with pytest.raises(harness.ControlError) as caught:
        prepare(daemon, **changed)
    assert caught.value.code == "ALREADY_EXISTS"


@pytest.mark.parametrize("wrong, named", [
    ({"uids": [4294967295]}, "parties.uids"), ({"uids": list(range(17))}, "parties.uids"),
    ({"pid": -1}, "parties.pid"), ({"pid": 1 << 31}, "parties.pid"),
    ({"cgroup": "machine.slice"}, "parties.cgroup"), ({"cgroup": "/a/"}, "parties.cgroup"),
    ({"cgroup": "/" + "x" * 1023}, "parties.cgroup"), ({"cgroup": "/a//b"}, "parties.cgroup"),
    ({"peer": "10.0.0.1"}, "parties.peer"), ({"peer": "spiffe://*"}, "parties.peer")], ids=str)
def test_what_can_be_nobody_is_refused(host, wrong, named):
    daemon = host.daemon("source")
    with pytest.raises(harness.ControlError) as caught:
        prepare(daemon, **wrong)
    assert caught.value.code == "INVALID_ARGUMENT" and named in caught.value.message


def test_source_serves_only_the_daemon_that_is_named(host):
    """All daemons whose certificates were allowed could ask, once they had the token."""
    daemon = host.daemon("source")
    prepare(daemon, peer="postcopy:destination")
    host.later(pyvmm.SourceVmm(daemon, "vm1", pyvmm.guest_content(SIZE)).close)
    for role in (stream.CONTROL, stream.URGENT):
        connection = stream.dial(daemon.port, host.pki.source)
        connection.say_hello(role, "vm1", regions=[stream.region(0, SIZE)] * (role == stream.CONTROL))
        assert "peer \"postcopy:source\" is not its other daemon" in connection.receive_error()
        connection.close()
    daemon.wait_for_log("peer \\\"postcopy:source\\\" is not its other daemon")
    stream.dial_stream(daemon.port, host.pki.destination, stream.CONTROL, "vm1",
                       regions=[stream.region(0, SIZE)])[0].close()


@needs_userfaultfd
@pytest.mark.parametrize("peer", ["postcopy:source", "URI:postcopy:another"])
def test_destination_dials_only_the_daemon_that_is_named(host, peer):
    heard = []

    class Listening(stream.FakeSource):
        def _answer(self, connection, kind, payload, request_id):
            heard.append(kind)
            super()._answer(connection, kind, payload, request_id)

    daemon = host.daemon("destination")
    source = Listening(host.pki.source, pyvmm.guest_content(SIZE))
    host.later(source.close)
    daemon.prepare_destination("vm1", source.address, parties={"peer": peer})
    vmm = pyvmm.DestinationVmm(daemon, "vm1", SIZE)
    host.later(vmm.close)
    daemon.call("Start", id="vm1")
    if peer == "postcopy:source":
        vmm.load()
        vmm.expect(pyvmm.COMPLETE)
        return
    reason = daemon.wait_for_state("vm1", "failed")["reason"]
    assert "peer \"postcopy:source\" is not \"URI:postcopy:another\"" in reason
    vmm.expect_failure()
    assert not heard


def test_postcopyctl_names_them_and_shows_them(host):
    daemon = host.daemon("source")

    def run(*args):
        return subprocess.run([harness.BUILD / "src/ctl/postcopyctl", *args, "--control",
                               daemon.control_path], capture_output=True, text=True, check=False)

    done = run("prepare", "vm1", "--role", "source", "--vmm-uid", "1001,7", "--vmm-pid", "77",
               "--vmm-cgroup", "/machine.slice", "--peer", "spiffe://here/host/*")
    assert done.returncode == 0, done.stderr
    shown = run("status", "vm1").stdout
    for text in ("uids 7, 1001", "77", "/machine.slice", "spiffe://here/host/*"):
        assert text in shown
    for uids in ("", "1,", "x", "4294967296", ",".join(map(str, range(17)))):
        assert "--vmm-uid" in run("prepare", "vm2", "--role", "source", "--vmm-uid", uids).stderr
