# SPDX-License-Identifier: Apache-2.0
"""The control socket: each call's answers and refusals."""
import json
import time

import pytest

import harness
from harness import ControlError, TOKEN


def refusal(daemon, method, **params):
    with pytest.raises(ControlError) as caught:
        daemon.call(method, **params)
    assert caught.value.message and "\n" not in caught.value.message
    return caught.value


@pytest.fixture
def daemon(host):
    return host.daemon("source")


def test_prepared_migration_is_listed(daemon):
    prepared = daemon.prepare_source("vm1")
    assert (prepared["id"], prepared["role"], prepared["state"]) == ("vm1", "source", "prepared")
    assert [m["id"] for m in daemon.call("List")["migrations"]] == ["vm1"]
    assert daemon.call("Get", id="vm1")["state"] == "prepared"


def test_prepare_twice_changes_nothing(daemon):
    daemon.prepare_destination("vm1", "127.0.0.1:9", streams=2)
    again = daemon.prepare_destination("vm1", "127.0.0.1:9", streams=2)
    assert again["state"] == "prepared"
    assert len(daemon.call("List")["migrations"]) == 1


@pytest.mark.parametrize("changed", [{"token": "00" * 32}, {"streams": 3},
                                     {"source": "127.0.0.1:10"}])
def test_prepare_of_the_same_id_with_other_parameters_is_refused(daemon, changed):
    params = {"source": "127.0.0.1:9", "streams": 2, "token": TOKEN}
    daemon.prepare_destination("vm1", **params)
    with pytest.raises(ControlError) as caught:
        daemon.prepare_destination("vm1", **{**params, **changed})
    assert caught.value.code == "ALREADY_EXISTS"


@pytest.mark.parametrize("method", ["Start", "Switchover", "Get", "Watch", "Report", "SetLimits",
                                    "Cancel"])
def test_unknown_id_is_not_found(daemon, method):
    error = refusal(daemon, method, id="nobody")
    assert error.code == "NOT_FOUND" and "nobody" in error.message


@pytest.mark.parametrize("params, named", [
    ({}, "id"),
    ({"id": "vm1"}, "role"),
    ({"id": 7, "role": "source", "token": TOKEN}, "id"),
    ({"id": "", "role": "source", "token": TOKEN}, "id"),
    ({"id": "x" * 65, "role": "source", "token": TOKEN}, "id"),
    ({"id": "../etc", "role": "source", "token": TOKEN}, "id"),
    ({"id": "vm1", "role": "both", "token": TOKEN}, "role"),
    ({"id": "vm1", "role": "source"}, "token"),
    ({"id": "vm1", "role": "source", "token": "12"}, "token"),
    ({"id": "vm1", "role": "source", "token": "zz" * 32}, "token"),
    ({"id": "vm1", "role": "destination", "token": TOKEN}, "source"),
    ({"id": "vm1", "role": "destination", "token": TOKEN, "source": "host"}, "source"),
    ({"id": "vm1", "role": "destination", "token": TOKEN, "source": "h:70000"}, "source"),
    ({"id": "vm1", "role": "destination", "token": TOKEN, "source": "h:1", "streams": 0},
     "streams"),
    ({"id": "vm1", "role": "destination", "token": TOKEN, "source": "h:1", "streams": 17},
     "streams"),
    ({"id": "vm1", "role": "destination", "token": TOKEN, "source": "h:1", "map": "maybe"}, "map"),
    ({"id": "vm1", "role": "destination", "token": TOKEN, "source": "h:1", "bulk": "yes"},
     "bulk"),
], ids=lambda value: " ".join("%s=%.12s" % item for item in value.items()) or "nothing"
    if isinstance(value, dict) else value)
def test_wrong_parameter_is_named(daemon, params, named):
    error = refusal(daemon, "Prepare", **params)
    assert error.code == "INVALID_ARGUMENT" and named in error.message
    assert daemon.call("List") == {"migrations": []}


@pytest.mark.parametrize("line, code", [
    (b"no json", "INVALID_ARGUMENT"),
    (b"[]", "INVALID_ARGUMENT"),
    (b"{}", "INVALID_ARGUMENT"),
    (b'{"method": 3}', "INVALID_ARGUMENT"),
    (b'{"method": "Get", "params": []}', "INVALID_ARGUMENT"),
    (b'{"method": "Explode", "params": {}}', "UNIMPLEMENTED"),
    (b"[" * 60000, "INVALID_ARGUMENT"),
], ids=lambda value: value[:24].decode() if isinstance(value, bytes) else value)
def test_line_that_is_no_request_is_refused_and_the_connection_goes_on(daemon, line, code):
    with daemon.control() as control:
        control.sock.sendall(line + b"\n")
        with pytest.raises(ControlError) as caught:
            control.receive()
        assert caught.value.code == code
        assert control.call("List") == {"migrations": []}


def test_line_above_64_kib_ends_the_connection_and_only_this_one(daemon):
    with daemon.control() as other:
        with daemon.control() as control:
            with pytest.raises((ControlError, harness.Failure, OSError)):
                control.sock.sendall(b"x" * 300000)
                control.receive()
        assert other.call("List") == {"migrations": []}


def test_requests_sent_together_are_answered_in_order(daemon):
    with daemon.control() as control:
        for name in ("a", "b", "c"):
            control.send("Prepare", id=name, role="source", token=TOKEN)
        assert [control.receive()["result"]["id"] for _ in range(3)] == ["a", "b", "c"]


def test_client_that_goes_away_while_watching_leaves_nothing(daemon):
    daemon.prepare_source("vm1")
    before = daemon.resources()["fds"]
    control = daemon.control()
    control.send("Watch", id="vm1")
    assert control.receive()["event"]["state"] == "prepared"
    control.sock.close()
    harness.eventually(lambda: daemon.resources()["fds"] <= before, "the connection is closed")


def test_watch_tells_again_after_its_interval(daemon):
    daemon.prepare_source("vm1")
    with daemon.control() as control:
        control.send("Watch", id="vm1", interval_ms=50)
        for _ in range(3):
            assert control.receive()["event"]["state"] == "prepared"


def test_start_before_the_vmm_has_attached_is_refused(host):
    destination = host.daemon("destination")
    destination.prepare_destination("vm1", "127.0.0.1:9")
    error = refusal(destination, "Start", id="vm1")
    assert error.code == "FAILED_PRECONDITION" and "attach" in error.message


def test_start_on_the_source_is_refused(daemon):
    daemon.prepare_source("vm1")
    assert refusal(daemon, "Start", id="vm1").code == "FAILED_PRECONDITION"


def test_cancelled_migration_stays_cancelled(daemon):
    daemon.prepare_source("vm1")
    assert daemon.call("Cancel", id="vm1")["state"] == "cancelled"
    assert daemon.call("Cancel", id="vm1")["state"] == "cancelled"
    assert daemon.state("vm1") == "cancelled"


def test_token_is_in_no_answer_and_no_log(daemon):
    daemon.prepare_source("vm1")
    assert TOKEN not in json.dumps(daemon.call("List"))
    assert TOKEN not in daemon.log()


def test_slow_reader_does_not_stop_the_others(daemon):
    """Asks for much and reads nothing: the daemon must bound what it keeps for it."""
    for number in range(50):
        daemon.prepare_source("vm%d" % number)
    with daemon.control() as glutton:
        glutton.sock.setblocking(False)
        try:
            for _ in range(20000):
                glutton.sock.sendall(b'{"method":"List","params":{}}\n')
        except BlockingIOError:
            pass
        began = time.monotonic()
        assert len(daemon.call("List")["migrations"]) == 50
        assert time.monotonic() - began < harness.DEADLINE_S
        assert daemon.resources()["rss_kib"] < 256 * 1024
