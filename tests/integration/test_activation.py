# SPDX-License-Identifier: Apache-2.0
"""Sockets that the service manager listens on for the daemon."""
import socket

import pytest

import harness
from control_client import Client
from keeper import KeptDaemon


def listener(family=socket.AF_INET, address=("127.0.0.1", 0), kind=socket.SOCK_STREAM):
    sock = socket.socket(family, kind)
    sock.bind(address)
    sock.listen()
    return sock


def activated(host, sockets, **options):
    options.setdefault("listen", "none")
    """@sockets: by their names, or pairs where several have one."""
    pairs = list(sockets.items()) if isinstance(sockets, dict) else sockets
    for _, sock in pairs:
        host.later(sock.close)
    return host.daemon("source", identity=host.pki.server, kind=KeptDaemon,
                       activated=[(name, sock.fileno()) for name, sock in pairs],
                       **options)


def test_page_streams_and_grpc_come_by_the_managers_sockets(host):
    pages, control = listener(), listener()
    daemon = activated(host, {"pages": pages, "control-tcp": control},
                       extra=["--control-allow", "postcopy:controller"])
    assert daemon.port == pages.getsockname()[1]
    client = Client("localhost:%d" % control.getsockname()[1], host.pki.controller)
    host.later(client.close)
    # Nothing is configured: the address is the socket's own.
    assert client.host("GetInfo").pages_address == "127.0.0.1:%d" % daemon.port
    assert daemon.prepare_source("vm1")["state"] == "prepared"


def test_grpc_over_tcp_needs_to_know_who_may_call(host):
    with pytest.raises(harness.Failure, match="control-read name nobody"):
        activated(host, {"control-tcp": listener()})


def test_calls_while_no_daemon_runs_are_answered_by_the_next(host):
    path = host.dir / "by-manager"
    daemon = activated(host, {"control": listener(socket.AF_UNIX, str(path))})
    daemon.wait_for_log("comes from the service manager")
    daemon.crash()
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        daemon.start()
        waiting.settimeout(harness.DEADLINE_S)
        assert waiting.recv(9)[3] == 4  # HTTP/2's SETTINGS
    with harness.Control(path) as control:
        assert control.call("List") == {"migrations": []}


def test_the_managers_socket_is_opened_to_groups(host):
    path = host.dir / "by-manager"
    sock = listener(socket.AF_UNIX, str(path), socket.SOCK_SEQPACKET)
    path.chmod(0o660)
    activated(host, {"vmm": sock}, extra=["--vmm", path, "--vmm-group", "adm"])
    assert path.stat().st_mode & 0o777 == 0o666
