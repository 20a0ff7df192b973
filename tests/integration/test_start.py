# SPDX-License-Identifier: Apache-2.0
"""Starting a daemon: what can't work is said in one line, and it ends with an error."""
import json
import re
import socket
import subprocess

import pytest

import harness
from pki import Identity


def start_expecting_refusal(host, **options):
    with pytest.raises(harness.Failure) as caught:
        host.daemon("source", **options)
    match = re.match(r"source1 ended with status (-?\d+): (.*)", str(caught.value), re.S)
    assert match, caught.value
    assert int(match.group(1)) > 0, "ended with status %s" % match.group(1)
    lines = match.group(2).strip().splitlines()
    assert len(lines) == 1, "not one line: %s" % lines
    return lines[0]


def test_bind_address_in_use_is_named(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        line = start_expecting_refusal(host, listen=address)
    assert address in line and "in use" in line


def test_address_that_is_not_ours_is_named(host):
    line = start_expecting_refusal(host, listen="192.0.2.1:0")
    assert "192.0.2.1" in line


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:", "127.0.0.1:70000", ":1",
                                    "tcp://127.0.0.1:7777", "[fe80::1]:7777", "::1:7777"])
def test_listen_address_that_is_none_is_named(host, listen):
    assert listen in start_expecting_refusal(host, listen=listen)


@pytest.mark.parametrize("what", ["cert", "key", "ca"])
def test_missing_file_is_named(host, pki, what):
    identity = Identity(pki.source.cert, pki.source.key, pki.source.ca)
    setattr(identity, what, host.dir / "absent.pem")
    line = start_expecting_refusal(host, identity=identity)
    assert str(host.dir / "absent.pem") in line and "No such file" in line


@pytest.mark.parametrize("what", ["cert", "key", "ca"])
def test_garbage_file_is_named(host, pki, what):
    garbage = host.dir / "garbage.pem"
    garbage.write_text("this is no PEM\n")
    identity = Identity(pki.source.cert, pki.source.key, pki.source.ca)
    setattr(identity, what, garbage)
    assert str(garbage) in start_expecting_refusal(host, identity=identity)


def test_unreadable_key_is_named(host, pki):
    # Root may read any file, but no directory.
    key = host.dir / "key-directory"
    key.mkdir()
    identity = Identity(pki.source.cert, key, pki.source.ca)
    assert str(key) in start_expecting_refusal(host, identity=identity)


def test_key_of_another_certificate_is_named(host, pki):
    identity = Identity(pki.source.cert, pki.destination.key, pki.source.ca)
    assert str(pki.destination.key) in start_expecting_refusal(host, identity=identity)


def test_control_socket_in_use_is_refused_and_stays_with_its_daemon(host):
    first = host.daemon("source")
    with pytest.raises(harness.Failure) as caught:
        host.daemon("destination", extra=["--control", first.control_path])
    assert str(first.control_path) in str(caught.value)
    assert first.call("List") == {"migrations": []}


def test_stale_sockets_of_a_killed_daemon_are_replaced(host):
    first = host.daemon("source")
    first.kill()
    host.processes.remove(first)
    second = host.daemon("source", extra=["--control", first.control_path,
                                          "--vmm", first.vmm_path])
    with harness.Control(first.control_path) as control:
        assert control.call("List") == {"migrations": []}
    assert second.popen.poll() is None


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["--listen"], ["--log-level", "loud"],
                                       ["--max-vmstate", "lots"], ["surplus"], []])
def test_wrong_arguments_are_named_with_status_2(arguments):
    done = subprocess.run([harness.BUILD / "src/postcopyd/postcopyd", *arguments],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=harness.DEADLINE_S)
    assert done.returncode == 2
    assert done.stderr.strip()
    for word in arguments[:1]:
        assert word.lstrip("-") in done.stderr


def test_log_as_json_is_one_object_a_line(host):
    daemon = host.daemon("source", extra=("--log-format", "json"))
    daemon.prepare_source("vm1")
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    assert all(line["ts"] and line["level"] and line["msg"] for line in lines)
    assert any(line.get("migration") == "vm1" and line.get("state") == "prepared" for line in lines)


def test_sigterm_ends_it_well(host):
    host.daemon("source").shut_down()
