# SPDX-License-Identifier: Apache-2.0
"""What a daemon listens on: all that a name stands for, and said so."""
import os
import re
import shutil
import socket
import urllib.request

import pytest

import harness
from control_client import Client
from keeper import KeptDaemon, drop_from_store
from test_activation import activated, listener

# In the place of this host's own, for the daemon alone.
HOSTS = """127.0.0.1 localhost
127.0.0.2 both.test
127.0.0.3 both.test
192.0.2.1 partly.test
127.0.0.4 partly.test
127.0.1.1 debian.test
192.0.2.1 elsewhere.test
"""
MOST = 8  # TCP_LISTEN_MAX
ENTER = 'mount --make-rprivate / && mount --bind "$0" /etc/hosts && exec "$@"'

needs_hosts = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"),
                                 reason="a hosts file of the test's own wants root and unshare")


def daemon_with_names(host, listen, hosts=HOSTS, **options):
    path = host.dir / "hosts"
    path.write_text(hosts)
    return host.daemon("source", listen=listen,
                       prefix=["unshare", "--mount", "sh", "-c", ENTER, path], **options)


def info(daemon):
    with daemon.control() as control:
        return control.client.host("GetInfo")


def connects(address, port):
    with socket.create_connection((address, port), timeout=harness.DEADLINE_S):
        return True


@needs_hosts
def test_all_addresses_of_a_name_are_listened_on(host):
    daemon = daemon_with_names(host, "both.test:0", identity=host.pki.server, extra=[
        "--control-listen", "both.test:0", "--control-allow", "postcopy:controller"])
    places = ["127.0.0.%d:%d" % (n, daemon.port) for n in (2, 3)]
    told = info(daemon)
    assert sorted(told.pages_addresses) == places
    assert told.pages_address == "both.test:%d" % daemon.port
    assert all(connects("127.0.0.%d" % n, daemon.port) for n in (2, 3))
    log = daemon.log()
    assert all(place in re.search("ready; page streams at (.*)", log)[1] for place in places)
    # gRPC: by each of them.
    assert len(told.control_addresses) == 2
    for address in told.control_addresses:
        assert address in re.search(r"gRPC over TCP on port \d+: (.*)", log)[1]
        assert connects(*address.rsplit(":", 1))


@needs_hosts
def test_all_of_them_outlive_the_process(host):
    daemon = daemon_with_names(host, "both.test:0", kind=KeptDaemon)
    assert [name for name in daemon.store.names() if name.startswith("pages")] == ["pages", "pages+1"]
    places = info(daemon).pages_addresses
    daemon.crash()
    # Meanwhile too: who comes is served by the next process.
    assert len(places) == 2 and all(connects(*place.split(":")) for place in places)
    daemon.start()
    assert info(daemon).pages_addresses == places


OTHERS = (r'listen \\"both\.test:0\\" is (\S.*) here, but what is listened on are the service '
          r"manager's sockets: (\S+)\. ")


@needs_hosts
def test_sockets_that_are_not_what_listen_stands_for_are_told(host):
    """A release that took a name's first address alone has left one; a name gets another address.
    The stored sockets win, and nothing was said."""
    daemon = daemon_with_names(host, "both.test:0", kind=KeptDaemon)
    daemon.crash_and_restart()
    drop_from_store(daemon, "pages+1")
    daemon.crash_and_restart()
    found = harness.eventually(lambda: re.search(OTHERS, daemon.log()), "it is told")
    assert found[1] == "127.0.0.2, 127.0.0.3" and found[2] == "127.0.0.2:%d" % daemon.port
    (host.dir / "hosts").write_text("127.0.0.4 both.test\n")
    daemon.crash_and_restart()
    found = harness.eventually(lambda: re.search(OTHERS.replace(r"(\S.*)", r"(127\.0\.0\.4)"),
                                                 daemon.log()), "it is told again")
    assert found[2] == "127.0.0.2:%d" % daemon.port
    # Not by the first restart, when they were what it stood for.
    assert len(re.findall(OTHERS, daemon.log())) == 2


@needs_hosts
@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_both_families_of_a_name_are_listened_on(host):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip("no IPv6 loopback here: %s" % error)
    daemon = daemon_with_names(host, "both.test:0", "127.0.0.2 both.test\n::1 both.test\n")
    assert sorted(info(daemon).pages_addresses) == ["127.0.0.2:%d" % daemon.port,
                                                       "[::1]:%d" % daemon.port]
    assert connects("::1", daemon.port) and connects("127.0.0.2", daemon.port)


@needs_hosts
def test_an_address_that_is_not_ours_is_told_and_passed_over(host):
    daemon = daemon_with_names(host, "partly.test:0")
    assert info(daemon).pages_addresses == ["127.0.0.4:%d" % daemon.port]
    assert "192.0.2.1 is not listened on: Cannot assign requested address" in daemon.log()
    with pytest.raises(harness.Failure, match="elsewhere.test:0.*Cannot assign"):
        daemon_with_names(host, "elsewhere.test:0")


@needs_hosts
def test_a_port_that_somebody_has_on_one_of_them_fails_all(host):
    with socket.create_server(("127.0.0.3", 0)) as taken:
        with pytest.raises(harness.Failure, match="which is 127.0.0.3: .*in use"):
            daemon_with_names(host, "both.test:%d" % taken.getsockname()[1])


@needs_hosts
def test_a_name_that_no_other_host_reaches_is_told(host):
    """Debian's own name is 127.0.1.1: the daemon listened, and its peers heard nothing."""
    daemon = daemon_with_names(host, "debian.test:0")
    assert re.search(r"the name is 127\.0\.1\.1:\d+ here, which no other host reaches", daemon.log())
    assert info(daemon).pages_addresses == ["127.0.1.1:%d" % daemon.port]


@needs_hosts
def test_metrics_are_served_at_all_addresses_of_a_name(host):
    """They were at the first alone, while all else was at each."""
    daemon = daemon_with_names(host, "127.0.0.1:0", extra=["--metrics-listen", "both.test:0"])
    port = int(re.search(r"metrics on port (\d+)", daemon.log())[1])
    for address in "127.0.0.2", "127.0.0.3":
        with urllib.request.urlopen("http://%s:%d/metrics" % (address, port),
                                    timeout=harness.DEADLINE_S) as page:
            assert b"postcopyd_build_info" in page.read()


@needs_hosts
def test_loopback_addresses_that_are_not_listened_on_are_nobodys_loss(host):
    """It advised to open [::]."""
    many = "".join("127.0.0.%d many.test\n" % n for n in range(2, 2 + MOST + 1))
    daemon = daemon_with_names(host, "many.test:0", many)
    assert len(info(daemon).pages_addresses) == MOST
    assert "more addresses than are listened on" not in daemon.log()


def test_all_sockets_of_the_managers_are_served(host):
    """A socket unit may have ListenStream= twice: the second was held open and nobody came."""
    pages, more = listener(), listener(address=("127.0.0.2", 0))
    control, more_control = listener(), listener(address=("127.0.0.2", 0))
    daemon = activated(host, [("pages", pages), ("pages", more), ("control-tcp", control),
                              ("control-tcp", more_control)],
                       extra=["--control-allow", "postcopy:controller"])
    told = info(daemon)
    assert told.pages_addresses == ["%s:%d" % sock.getsockname() for sock in (pages, more)]
    for sock in control, more_control:
        client = Client("%s:%d" % sock.getsockname(), host.pki.controller, "localhost")
        host.later(client.close)
        assert client.host("GetInfo").pages_addresses == told.pages_addresses
