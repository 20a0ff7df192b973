# SPDX-License-Identifier: Apache-2.0
"""Strangers share a host: what one of them can take up is bounded, each limit is told, and root gets
in all the same."""
import os
import resource
import select
import socket
import subprocess
import sys

import pytest

import harness
import pyvmm
import stream
from keeper import KeptDaemon
from stream import FakeSource
from test_metrics import samples, value
from test_takeover import Scripted

needs_userfaultfd = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                       reason=str(pyvmm.can_userfault()))
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
NOBODY = 65534
METRICS = ["--metrics-listen", "127.0.0.1:0"]
# Connects many times and prints what each is told, or "silence" for who may wait.
CONNECT = """
import select, socket, sys
socks = []
for _ in range(int(sys.argv[2])):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(sys.argv[1])
    socks.append(sock)
for sock in socks:
    ready = select.select([sock], [], [], float(sys.argv[3]))[0]
    print(sock.recv(8192)[16:].decode() if ready else "silence")
"""


# Attaches with a page for each message, prints what each is told, and stays until its input ends.
ATTACH = """
import array, os, socket, sys
socks = []
for message in sys.argv[2:]:
    fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(sys.argv[1])
    sock.sendmsg([bytes.fromhex(message)],
                 [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    socks.append(sock)
    print(sock.recv(8192)[16:].decode(errors="replace").strip("\\0"), flush=True)
print("done", flush=True)
sys.stdin.read()
"""


def connect_as_nobody(daemon, number, wait_s=0.2):
    done = subprocess.run([sys.executable, "-c", CONNECT, daemon.vmm_path, str(number),
                           str(wait_s)], user=NOBODY, group=NOBODY, extra_groups=[],
                          capture_output=True, text=True, timeout=harness.DEADLINE_S, check=True)
    return done.stdout.splitlines()


def open_to_nobody(host, *extra):
    host.dir.chmod(0o755)
    group = [*METRICS, "--vmm-group", "nogroup", *map(str, extra)]
    return host.daemon("source", extra=group)


def refused(daemon, reason):
    return value(samples(daemon), "postcopyd_refused_total", door="vmm", reason=reason)


@needs_root
def test_silent_vmms_of_one_user_are_few(host):
    """256 connections that never attached kept everybody else out, for as long as they liked."""
    daemon = open_to_nobody(host, "--max-waiting-vmms", 4)
    told = connect_as_nobody(daemon, 6)
    assert told[:4] == ["silence"] * 4
    for text in told[4:]:
        assert "4 connections of this user have not attached yet (max-waiting-vmms)" in text
    assert refused(daemon, "user") == 2
    assert "max-waiting-vmms" in daemon.log()


@needs_root
def test_root_gets_in_where_the_limit_is_reached(host):
    daemon = open_to_nobody(host, "--max-vmms", 2)
    vmms = [pyvmm.Socket(daemon.vmm_path) for _ in range(2)]
    assert "2 VMMs are connected (max-vmms)" in connect_as_nobody(daemon, 1)[0]
    daemon.prepare_source("vm1")
    pyvmm.SourceVmm(daemon, "vm1", b"x" * pyvmm.PAGE).close()
    for vmm in vmms:
        vmm.close()
    assert refused(daemon, "limit") == 1


def test_who_does_not_attach_is_sent_away(host):
    """A silent connection was there for ever."""
    daemon = host.daemon("source", extra=[*METRICS, "--attach-timeout", "1"])
    daemon.prepare_source("vm1")
    attached = pyvmm.SourceVmm(daemon, "vm1", b"x" * pyvmm.PAGE)
    host.later(attached.close)
    silent = pyvmm.Socket(daemon.vmm_path)
    code, text = silent.expect_error()
    assert "attach-timeout" in text
    silent.close()
    assert daemon.state("vm1") == "attached"
    assert refused(daemon, "deadline") == 1


def test_what_nobody_comes_for_expires(host):
    """Prepared migrations stayed for ever: 4,090 of them filled what the manager keeps."""
    daemon = host.daemon("source", kind=KeptDaemon, extra=["--prepare-timeout", "1"])
    daemon.prepare_source("vm1")
    daemon.prepare_source("vm2")
    vmm = pyvmm.SourceVmm(daemon, "vm2", b"x" * pyvmm.PAGE)
    host.later(vmm.close)
    migration = daemon.wait_for_state("vm1", "cancelled")
    assert "prepare-timeout" in migration["reason"]
    assert daemon.state("vm2") == "attached"


def test_migrations_are_counted(host):
    """Of root 16 more; shares of other clients are test-methods' matter."""
    daemon = host.daemon("source", extra=["--max-migrations", "2"])
    most = 2 if os.getuid() else 2 + 16
    for number in range(most):
        daemon.prepare_source("vm%d" % number)
    with pytest.raises(harness.ControlError) as caught:
        daemon.prepare_source("more")
    assert caught.value.reason == "TOO_MANY" and "(max-migrations)" in caught.value.message
    daemon.call("Cancel", id="vm1")
    daemon.prepare_source("more")


@needs_userfaultfd
def test_who_has_not_said_goodbye_is_counted(host):
    """It had ended, so it was not counted; but a thread and its connections were there until the
    source heard of it. One that never answers let a client have as many as it liked."""
    class Deaf(FakeSource):
        def _answer(self, connection, kind, payload, request_id):
            if kind == stream.ABORT:
                raise EOFError
            super()._answer(connection, kind, payload, request_id)

    daemon = host.daemon("destination", extra=["--max-migrations", "2"])
    source = Deaf(host.pki.source, pyvmm.guest_content(1 << 20))
    host.later(source.close)
    most = 2 if os.getuid() else 2 + 16
    for number in range(most):
        name = "vm%d" % number
        daemon.prepare_destination(name, source.address)
        vmm = pyvmm.DestinationVmm(daemon, name, 1 << 20)
        daemon.call("Start", id=name, switchover=False)
        daemon.wait_for_state(name, "warming")
        harness.eventually(lambda: daemon.call("Get", id=name)["tls"], "it is connected")
        vmm.close()
        daemon.wait_for_state(name, "failed")
    with pytest.raises(harness.ControlError) as caught:
        daemon.prepare_destination("more", source.address)
    assert caught.value.reason == "TOO_MANY" and "(max-migrations)" in caught.value.message
    source._answer = lambda *frame: FakeSource._answer(source, *frame)
    harness.eventually(lambda: daemon.threads("conductor") == 0, "the source has heard of all")
    daemon.prepare_destination("more", source.address)


def is_called(daemon):
    """Whether a control connection is open: it may outlast its call for a moment."""
    with open("/proc/net/unix") as sockets:
        rows = [line.split() for line in sockets]
    # Num RefCount Protocol Flags Type St Inode Path; 03: connected.
    return any(row[5] == "03" and row[7:] == [str(daemon.control_path)] for row in rows)


def leave_descriptors(daemon, number):
    """As many numbers as that are free below the limit."""
    harness.eventually(lambda: not is_called(daemon), "all connections are closed")
    used = {int(fd) for fd in os.listdir("/proc/%d/fd" % daemon.pid)}
    free = [fd for fd in range(4096) if fd not in used]
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (free[number], 4096))


def cpu_ticks(pid):
    with open("/proc/%d/stat" % pid) as stat:
        fields = stat.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_out_of_descriptors_vmms_are_told_and_nothing_spins(host):
    """The loop took a core, said nothing, and whoever connected heard nothing."""
    daemon = host.daemon("source", extra=METRICS)
    daemon.prepare_source("vm1")
    leave_descriptors(daemon, 0)
    socks = [pyvmm.Socket(daemon.vmm_path) for _ in range(6)]
    for sock in socks:
        code, text = sock.expect_error()
        assert "no descriptor left" in text and "LimitNOFILE=" in text
        sock.close()
    assert daemon.log().count("no descriptor for a connection") == 1
    before = cpu_ticks(daemon.pid)
    select.select([], [], [], 1)
    assert cpu_ticks(daemon.pid) - before < os.sysconf("SC_CLK_TCK") // 2
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    vmm = pyvmm.SourceVmm(daemon, "vm1", b"x" * pyvmm.PAGE)
    host.later(vmm.close)
    assert refused(daemon, "resources") == 6


def test_attach_whose_descriptors_find_no_room_is_told_so(host):
    """It was told that it had sent more than 65."""
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    leave_descriptors(daemon, 1)
    with pytest.raises(harness.Failure) as caught:
        pyvmm.SourceVmm(daemon, "vm1", b"x" * pyvmm.PAGE)
    assert "this process has as many open as it may" in str(caught.value)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    assert daemon.state("vm1") == "prepared"


@needs_userfaultfd
def test_channel_that_finds_no_room_costs_no_guest(host):
    """The VMM was cut off as if it had sent too many, and its guest, in postcopy, was lost."""
    scripted = Scripted(host)
    daemon = scripted.destination
    daemon.call("SetLimits", id="vm1", bulk=False)
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.load()
    daemon.wait_for_state("vm1", "postcopy")
    leave_descriptors(daemon, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(harness.DEADLINE_S)
    scripted.destination_vmm.send(pyvmm.packet(pyvmm.CHANNEL), [theirs.fileno()])
    theirs.close()
    assert ours.recv(1) == b""
    daemon.wait_for_log("refused: a fetch channel")
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    assert daemon.state("vm1") == "postcopy"
    daemon.call("SetLimits", id="vm1", bulk=True)
    scripted.finish()


@needs_userfaultfd
def test_pause_whose_descriptor_finds_no_room_costs_no_guest(host):
    """The VMM, its guest paused, was cut off, and did not know that nobody had the guest."""
    scripted = Scripted(host)
    daemon = scripted.source
    scripted.start("vm1")
    scripted.source_vmm.expect(pyvmm.PAUSE)
    leave_descriptors(daemon, 0)
    fd = pyvmm.sealed_memfd(b"the vmstate")
    scripted.source_vmm.send(pyvmm.paused(len(b"the vmstate")), [fd])
    os.close(fd)
    scripted.source_vmm.expect(pyvmm.RESUME)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    assert "LimitNOFILE=" in daemon.wait_for_state("vm1", "failed")["reason"]
    scripted.destination.wait_for_state("vm1", "failed")


@needs_userfaultfd
def test_missing_of_sparse_memory_is_looked_for_in_parts(host):
    """The whole bitmap was walked on the loop: 0.9 s for all, of 16 TiB."""
    size = 300 << 30
    source = host.daemon("source")
    destination = host.daemon("destination", extra=["--memory-check", "no"])
    destination.prepare_destination("vm1", source.address)
    vmm = pyvmm.DestinationVmm(destination, "vm1", size)
    host.later(vmm.close)
    token, pages = "", []
    while True:
        answer = destination.call("ListMissing", id="vm1", page_token=token)
        pages.append([(r.guest_phys_addr, r.size_bytes) for r in answer.ranges])
        token = answer.next_page_token
        if not token:
            break
    assert len(pages) == 3
    at = 0
    for address, length in sum(pages, []):
        assert address == at
        at += length
    assert at == size == answer.missing_bytes


@needs_root
def test_one_user_leaves_room_in_the_store_for_others(host):
    """VMMs of one user filled what the manager keeps; the next tenant's guest was refused, or lost
    at an ordinary restart."""
    host.dir.chmod(0o755)
    daemon = host.daemon("source", kind=KeptDaemon, most=64, extra=[
        *METRICS, "--vmm-group", "nogroup", "--max-user-store", "25"])
    ids = ["vm%d" % number for number in range(7)]
    for migration_id in ids:
        daemon.prepare_source(migration_id)
    messages = [pyvmm.attach(pyvmm.SOURCE, migration_id, [pyvmm.Region(pyvmm.PAGE)]).hex()
                for migration_id in ids[:6]]
    with subprocess.Popen([sys.executable, "-c", ATTACH, daemon.vmm_path, *messages], user=NOBODY,
                          group=NOBODY, extra_groups=[], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as nobody:
        told = [nobody.stdout.readline().strip() for _ in messages]
        assert nobody.stdout.readline() == "done\n"
        # A file, a socket and room for a vmstate each: of 64 a quarter is 16.
        assert [bool(text) for text in told] == [False] * 5 + [True], told
        assert "user 65534 have 15 of the 16" in told[5] and "max-user-store" in told[5]
        assert refused(daemon, "user") == 1
        assert daemon.state("vm5") == "prepared"
        # Others get in, though that user is at its end.
        vmm = pyvmm.SourceVmm(daemon, "vm6", b"x" * pyvmm.PAGE)
        host.later(vmm.close)
        nobody.stdin.close()
    # What it has let go of counts no more.
    harness.eventually(lambda: daemon.state("vm0") == "prepared", "its VMM is gone")
    with subprocess.Popen([sys.executable, "-c", ATTACH, daemon.vmm_path, messages[5]], user=NOBODY,
                          group=NOBODY, extra_groups=[], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as nobody:
        assert nobody.stdout.readline().strip() == ""
        nobody.stdin.close()


def test_refused_prepares_are_counted(host):
    """Nobody saw an orchestrator whose migrations were all refused."""
    daemon = host.daemon("destination", listen="none", extra=[*METRICS, "--max-migrations", "1"])
    daemon.prepare_destination("vm1", "127.0.0.1:9")

    def refusals():
        name = "postcopyd_prepares_refused_total"
        return {dict(labels)["reason"]: number for (family, labels), (_, number)
                in samples(daemon).items() if family == name and number}

    assert refusals() == {}
    for params in ({"token": "12"}, {"token": "99" * 32}):
        with pytest.raises(harness.ControlError):
            daemon.prepare_destination("vm1", "127.0.0.1:9", **params)
    with pytest.raises(harness.ControlError):
        daemon.prepare_source("vm2")
    with pytest.raises(harness.ControlError):
        for number in range(20):
            daemon.prepare_destination("vm%d" % (10 + number), "127.0.0.1:9")
    assert refusals() == {"parameters": 1, "exists": 1, "role": 1, "limit": 1}
