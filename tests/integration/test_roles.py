# SPDX-License-Identifier: Apache-2.0
"""Who may do what by the control service, and the trail that is left of it."""
import grp
import json
import os
import re
import subprocess

import grpc
import pytest

import harness
import stream
from control_client import HEALTH, HOST, Client, error_info
from test_grpc import refusal, tcp_target
from test_metrics import samples, value

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="other users' processes need root")
NOBODY = 65534
METRICS = ["--metrics-listen", "127.0.0.1:0"]
Code = grpc.StatusCode
CHANGES = ("Prepare", "SetToken", "Start", "Switchover", "Cancel", "Recover", "SetLimits", "Delete", "Poison",
           "RunOn", "Release")


def ctl_as(daemon, gid, *args, groups=()):
    """postcopyctl, run by a user that is nobody, in a group."""
    become = ["setpriv", "--reuid", str(NOBODY), "--regid", str(gid)]
    become += ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return subprocess.run([*become, harness.BUILD / "src/ctl/postcopyctl", *args, "--control",
                           daemon.control_path], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, cwd="/", timeout=harness.DEADLINE_S)


def audits(daemon):
    """The trail's records, from a log in JSON."""
    lines = [json.loads(line) for line in daemon.log().splitlines() if line.startswith("{")]
    return [line for line in lines if "audit_method" in line]


@needs_root
def test_who_may_look_on_the_unix_socket_changes_nothing(host):
    """Whoever a dashboard runs as could cancel, poison and release guests."""
    readers, operators, strangers = grp.getgrgid(4), grp.getgrgid(5), grp.getgrgid(6)
    host.dir.chmod(0o755)
    daemon = host.daemon("source", extra=[*METRICS, "--log-format", "json", "--control-group",
                                          operators.gr_name, "--control-read-group",
                                          readers.gr_name])
    daemon.prepare_source("vm1")
    for groups in ((), (strangers.gr_gid, readers.gr_gid)):
        gid = NOBODY if groups else readers.gr_gid
        assert ctl_as(daemon, gid, "status", "vm1", groups=groups).returncode == 0
        done = ctl_as(daemon, gid, "cancel", "vm1", groups=groups)
        assert done.returncode != 0
        for text in ("uid 65534", "postcopyctl", "postcopy.v1.Migrations/Cancel",
                     "control-group"):
            assert text in done.stderr, done.stderr
    assert daemon.state("vm1") == "prepared"
    assert ctl_as(daemon, strangers.gr_gid, "list").returncode != 0
    assert ctl_as(daemon, operators.gr_gid, "cancel", "vm1").returncode == 0
    assert daemon.state("vm1") == "cancelled"

    def calls(**labels):
        return value(samples(daemon), "postcopyd_control_calls_total",
                     method="/postcopy.v1.Migrations/Cancel", **labels)
    assert calls(role="reader", code="PERMISSION_DENIED") == 2
    assert calls(role="operator", code="OK") == 1


@needs_root
def test_a_trail_is_left_of_all_that_changes(host):
    """After a guest was given up nobody could say who had ordered it."""
    readers = grp.getgrgid(4)
    host.dir.chmod(0o755)
    daemon = host.daemon("source", extra=["--log-format", "json", "--control-read-group",
                                          readers.gr_name])
    daemon.prepare_source("vm1")
    daemon.call("Get", id="vm1")
    ctl_as(daemon, readers.gr_gid, "cancel", "vm1")
    with pytest.raises(harness.ControlError):
        daemon.call("Switchover", id="vm1")
    daemon.call("Cancel", id="vm1")
    trail = [(r["migration"], r["audit_method"].rpartition("/")[2], r["audit_caller"],
              r["audit_role"], r["audit_result"]) for r in audits(daemon)]
    assert trail == [
        ("vm1", "Prepare", "uid 0", "operator", "OK"),
        ("vm1", "Cancel", "uid 65534", "reader", "PERMISSION_DENIED"),
        ("vm1", "Switchover", "uid 0", "operator", "FAILED_PRECONDITION"),
        ("vm1", "Cancel", "uid 0", "operator", "OK"),
    ]
    first, denied = audits(daemon)[:2]
    assert (first["audit_uid"], first["audit_pid"]) == ("0", str(os.getpid()))
    assert denied["audit_comm"] == "postcopyctl" and denied["level"] == "warning"
    assert harness.TOKEN not in daemon.log()


def test_who_may_look_over_tls_changes_nothing(host, pki):
    both = pki.identity("both", "URI:postcopy:stranger,URI:postcopy:controller")
    daemon = host.daemon("source", identity=pki.server, extra=[
        "--control-listen", "127.0.0.1:0", "--control-allow", "postcopy:controller",
        "--control-read", "postcopy:stranger"])
    target = tcp_target(daemon)
    with Client(target, pki.controller) as operator, Client(target, pki.stranger) as reader:
        operator.migrations("Prepare", id="vm1", role="ROLE_SOURCE", token=bytes(range(32)))
        assert reader.migrations("Get", id="vm1").id == "vm1"
        assert next(reader.migrations("Watch", id="vm1")).id == "vm1"
        assert reader.migrations("List").migrations[0].id == "vm1"
        assert reader.host("GetInfo").version
        assert reader.call(HEALTH, "Check", service=HOST).status == 1
        for method in CHANGES:
            error = refusal(Code.PERMISSION_DENIED, reader.migrations, method, id="vm1")
            assert error_info(error).reason == "PERMISSION"
            for text in ("postcopy:stranger", "127.0.0.1 port", "Migrations/" + method,
                         "control-allow"):
                assert text in error.details()
        # Of several names the one that allows most counts, wherever it stands.
        with Client(target, both) as other:
            other.migrations("Cancel", id="vm1")
    assert re.search(r'audit_caller=postcopy:controller .*audit_address="127.0.0.1 port \d+"',
                     daemon.log())


def test_readers_alone_may_be_named(host, pki):
    daemon = host.daemon("source", identity=pki.server, extra=[
        "--control-listen", "127.0.0.1:0", "--control-read", "postcopy:stranger"])
    with Client(tcp_target(daemon), pki.stranger) as reader:
        assert reader.host("GetInfo").version
        refusal(Code.PERMISSION_DENIED, reader.migrations, "Delete", id="vm1")
    with Client(tcp_target(daemon), pki.controller) as nobody:
        refusal(Code.UNAVAILABLE, nobody.host, "GetInfo")


def test_who_is_turned_away_is_counted_and_named(host, pki):
    """A host that knocked at every port all day was a line without an address, or none."""
    daemon = host.daemon("source", identity=pki.server, extra=[
        *METRICS, "--control-listen", "127.0.0.1:0", "--control-allow", "postcopy:controller"])
    daemon.prepare_source("vm1")

    def refused(door, reason):
        return value(samples(daemon), "postcopyd_refused_total", door=door, reason=reason)

    with Client(tcp_target(daemon), pki.stranger) as nobody:
        refusal(Code.UNAVAILABLE, nobody.host, "GetInfo")
    assert refused("control", "certificate") >= 1
    assert re.search(r'refused_door=control refused_reason=certificate '
                     r'refused_peer="127.0.0.1 port \d+"', daemon.log())
    with pytest.raises(OSError):
        stream.dial(daemon.port, pki.stranger).sock.recv(1)
    harness.eventually(lambda: refused("pages", "certificate") == 1, "it is counted")
    guesser = stream.dial(daemon.port, pki.destination)
    guesser.send(stream.frame(stream.HELLO, stream.hello(stream.CONTROL, "vm1", bytes(32))))
    guesser.receive_error()
    guesser.close()
    harness.eventually(lambda: refused("pages", "token") == 1, "it is counted")
    assert re.search(r'refused_reason=token refused_peer="127.0.0.1 port \d+"', daemon.log())
