# SPDX-License-Identifier: Apache-2.0
"""The control service: each call's answers and refusals."""
import json
import socket

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


@pytest.mark.parametrize("changed", [{"token": "11" * 32}, {"streams": 3},
                                     {"source": "127.0.0.1:10"}])
def test_prepare_of_the_same_id_with_other_parameters_is_refused(daemon, changed):
    params = {"source": "127.0.0.1:9", "streams": 2, "token": TOKEN}
    daemon.prepare_destination("vm1", **params)
    with pytest.raises(ControlError) as caught:
        daemon.prepare_destination("vm1", **{**params, **changed})
    assert caught.value.code == "ALREADY_EXISTS"


@pytest.mark.parametrize("method", ["Start", "Switchover", "Get", "GetReport", "SetLimits",
                                    "Cancel"])
def test_unknown_id_is_not_found(daemon, method):
    error = refusal(daemon, method, id="nobody")
    assert error.code == "NOT_FOUND" and "nobody" in error.message


def destination(**fields):
    return {"id": "vm1", "role": "destination", "token": TOKEN, "source": "h:1", **fields}


@pytest.mark.parametrize("params, named", [
    ({}, "id"),
    ({"id": "vm1", "token": TOKEN}, "role"),
    ({"id": "", "role": "source", "token": TOKEN}, "id"),
    ({"id": "x" * 65, "role": "source", "token": TOKEN}, "id"),
    ({"id": "../etc", "role": "source", "token": TOKEN}, "id"),
    ({"id": "vm1", "role": "source"}, "token"),
    ({"id": "vm1", "role": "source", "token": "12"}, "token"),
    ({"id": "vm1", "role": "destination", "token": TOKEN}, "source"),
    (destination(source="host"), "source"),
    (destination(source="h:70000"), "source"),
    (destination(streams=0), "streams"),
    (destination(streams=17), "streams"),
], ids=lambda value: " ".join("%s=%.12s" % item for item in value.items()) or "nothing"
    if isinstance(value, dict) else value)
def test_wrong_parameter_is_named(daemon, params, named):
    error = refusal(daemon, "Prepare", **params)
    assert error.code == "INVALID_ARGUMENT" and named in error.message
    assert error.reason == "INVALID_FIELD"
    assert daemon.call("List") == {"migrations": []}


def test_who_speaks_json_lines_is_told_nothing_and_harms_nobody(daemon):
    with daemon.control() as other:
        assert other.call("List") == {"migrations": []}
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(harness.DEADLINE_S)
            sock.connect(str(daemon.control_path))
            sock.sendall(b'{"method": "List", "params": {}}\n')
            while sock.recv(4096):
                pass
        assert other.call("List") == {"migrations": []}


def test_calls_on_one_connection(daemon):
    with daemon.control() as control:
        for name in ("a", "b", "c"):
            assert control.call("Prepare", id=name, role="source", token=TOKEN)["id"] == name
        assert {m["id"] for m in control.call("List")["migrations"]} == {"a", "b", "c"}


def test_client_that_goes_away_while_watching_leaves_nothing(daemon):
    # Stays, so that its own end is not counted.
    with daemon.control() as other:
        other.call("Prepare", id="vm1", role="source", token=TOKEN)
        before = daemon.resources()["fds"]
        with daemon.control() as control:
            assert next(control.watch("vm1"))["state"] == "prepared"
            assert daemon.resources()["fds"] > before
        harness.eventually(lambda: daemon.resources()["fds"] <= before, "the connection is closed")


def test_watch_of_nobody_is_not_found(daemon):
    with daemon.control() as control, pytest.raises(ControlError) as caught:
        next(control.watch("nobody"))
    assert caught.value.code == "NOT_FOUND"


def test_watch_tells_again_after_its_interval(daemon):
    daemon.prepare_source("vm1")
    with daemon.control() as control:
        updates = control.watch("vm1", interval_ms=50)
        for _ in range(3):
            assert next(updates)["state"] == "prepared"


def test_watch_ends_with_the_last_state(daemon):
    daemon.prepare_source("vm1")
    with daemon.control() as control:
        updates = control.watch("vm1")
        assert next(updates)["state"] == "prepared"
        daemon.call("Cancel", id="vm1")
        assert [m["state"] for m in updates][-1] == "cancelled"


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
