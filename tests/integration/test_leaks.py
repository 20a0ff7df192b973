# SPDX-License-Identifier: Apache-2.0
"""A hundred bad tries of each kind leave a daemon as it was: descriptors, threads, memory."""
import os
import socket
import ssl

import pytest

import harness
import pyvmm
import stream
from pyvmm import PAGE, Region
from stream import FakeSource

SIZE = 1 << 20
TRIES = 100
# What the allocator may keep by chance; a leak of 3 KiB a try would be above it.
SLACK_KIB = 256


def assert_nothing_leaks(daemon, one_try, warm_up=TRIES):
    """The first tries warm up caches and arenas; the others must not add to them. A few
    connections still being closed in between hide no leak: each kind is tried ten times."""
    for number in range(warm_up):
        one_try(number)
    before = daemon.resources()
    for number in range(warm_up, warm_up + TRIES):
        one_try(number)
    harness.eventually(lambda: daemon.resources()["fds"] <= before["fds"] and
                       daemon.resources()["threads"] <= before["threads"],
                       "no more than %s, but there are %s" % (before, daemon.resources()))
    if not harness.sanitizer():
        assert daemon.resources()["rss_kib"] <= before["rss_kib"] + SLACK_KIB


@pytest.fixture
def daemon(host):
    daemon = host.daemon("source", allow=["postcopy:destination"])
    daemon.prepare_source("vm1")
    return daemon


def test_bad_vmms_leak_nothing(host, daemon):
    guest = pyvmm.memfd(size=SIZE)
    plain = os.open(daemon.log_path, os.O_RDWR)
    host.later(lambda: (os.close(guest), os.close(plain)))
    good = pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(SIZE)])
    tries = [
        (good, [plain]),
        (good, [guest, guest]),
        (good, []),
        (good, [guest] * 200),
        (pyvmm.attach(pyvmm.SOURCE, "vm2", [Region(SIZE)]), [guest]),
        (pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(SIZE + PAGE)]), [guest]),
        (pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(SIZE, guest_phys_addr=1)]), [guest]),
        (good[:40], [guest]),
        (b"garbage", [guest, plain]),
        (bytes(9000), [guest]),
    ]

    def one_try(number):
        data, fds = tries[number % len(tries)]
        with pyvmm.Socket(daemon.vmm_path) as sock:
            sock.send(data, fds)
            sock.expect_error()

    assert_nothing_leaks(daemon, one_try)


def test_vmms_that_hang_up_leak_nothing(daemon):
    content = pyvmm.guest_content(SIZE)

    def one_try(_):
        pyvmm.SourceVmm(daemon, "vm1", content).close()
        daemon.wait_for_state("vm1", "prepared")

    assert_nothing_leaks(daemon, one_try)


def test_bad_stream_clients_leak_nothing(host, daemon, pki):
    vmm = pyvmm.SourceVmm(daemon, "vm1", pyvmm.guest_content(SIZE))
    host.later(vmm.close)
    hello = dict(role=stream.CONTROL, migration_id="vm1", regions=[stream.region(0, SIZE)])

    def garbage(_):
        with socket.create_connection(("127.0.0.1", daemon.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
            raw.shutdown(socket.SHUT_WR)
            try:
                while raw.recv(4096):
                    pass
            except ConnectionError:
                pass

    def says(identity, data, **hello):
        def one(_):
            try:
                connection = stream.dial(daemon.port, identity)
                if hello:
                    connection.say_hello(**hello)
                connection.send(data)
                while True:
                    connection.receive()
            except (ssl.SSLError, EOFError, ConnectionError):
                pass
            finally:
                if "connection" in locals():
                    connection.close()
        return one

    def hangs_up(_):
        connection, _ = stream.dial_stream(daemon.port, pki.destination, stream.CONTROL, "vm1",
                                           regions=[stream.region(0, SIZE)])
        connection.close()

    tries = [
        garbage,
        hangs_up,
        says(None, b"x"),
        says(pki.forged, b"x"),
        says(pki.stranger, b"x"),
        says(pki.destination, stream.frame(stream.HELLO, b"\xff" * 40)),
        says(pki.destination, b"", token="00" * 32, **hello),
        says(pki.destination, stream.get(0, 0, 1), **hello),
        says(pki.destination, stream.frame(stream.GET, length=0xFFFFFFFF)),
        says(pki.destination, b"\xa5" * 400, **hello),
    ]
    assert_nothing_leaks(daemon, lambda number: tries[number % len(tries)](number))
    daemon.wait_for_state("vm1", "attached")


def test_bad_control_requests_leak_nothing(daemon):
    def refused(method, **fields):
        with daemon.control() as control, pytest.raises(harness.ControlError):
            control.call(method, **fields)

    def cut_watch(_):
        with daemon.control() as control:
            next(control.watch("vm1"))

    def garbage(_):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(daemon.control_path))
            sock.sendall(b"{\"method\": \"List\"}\n")

    tries = [lambda _: refused("Get", id="nobody"),
             lambda _: refused("Prepare", id="x", role="source", token="12"),
             cut_watch, garbage]
    assert_nothing_leaks(daemon, lambda number: tries[number % len(tries)](number))


@pytest.mark.skipif(pyvmm.can_userfault() is not None, reason=str(pyvmm.can_userfault()))
def test_lying_sources_leak_nothing_in_a_destination(host, pki):
    daemon = host.daemon("destination", allow=["postcopy:source"])
    content = pyvmm.guest_content(SIZE)

    def one_try(number):
        name = "lie-%d" % number
        source = FakeSource(pki.source, content, reply_regions=[stream.region(0, 2 * SIZE)])
        daemon.prepare_destination(name, source.address)
        vmm = pyvmm.DestinationVmm(daemon, name, SIZE)
        daemon.call("Start", id=name)
        daemon.wait_for_state(name, "failed")
        vmm.close()
        source.close()

    # The daemon keeps a number of ended migrations: until they are that many it grows.
    assert_nothing_leaks(daemon, one_try, warm_up=250)
