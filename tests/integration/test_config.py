# SPDX-License-Identifier: Apache-2.0
"""The configuration file as an administrator meets it: checked, printed, served from."""
import os
import pathlib
import subprocess

import pytest

import harness

DAEMON = harness.BUILD / "src/postcopyd/postcopyd"


def run(*arguments, **env):
    return subprocess.run([DAEMON, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=harness.DEADLINE_S,
                          env={**os.environ, **env})


@pytest.fixture
def config(tmp_path, pki):
    """Writes a file that is good, but for what a test changes."""
    def write(tls=pki.source, extra="", sockets=tmp_path):
        path = tmp_path / "postcopyd.conf"
        path.write_text("[control]\ncontrol=%s/control\n[vmm]\nvmm=%s/vmm\n"
                        "[tls]\ncert=%s\nkey=%s\nca=%s\n%s\n" % (
                            sockets, sockets, tls.cert, tls.key, tls.ca, extra))
        return path
    return write


def complaints(done):
    assert done.returncode == 2, done.stdout + done.stderr
    assert not done.stdout
    return done.stderr.strip().splitlines()


def test_a_good_file_is_ok(config):
    path = config(extra="[stream]\nlisten=localhost:0\nallow-peer=postcopy:destination\n")
    done = run("--config", path, "--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, "OK\n", "")
    # Nothing was made.
    assert os.listdir(path.parent) == [path.name]


def test_all_that_is_wrong_is_told_with_its_line(config):
    path = config(extra="[stream]\nmax-streams=99\nspeed=1\n[steam]\n")
    lines = complaints(run("--config", path, "--check-config"))
    for number, text in ((10, "[stream] max-streams: 99 is not within 1..16"),
                         (11, "[stream] speed: no such key"), (12, "[steam]: no such section")):
        assert any("%s:%d: %s" % (path, number, text) in line for line in lines), lines
    assert len(lines) == 3


def test_all_that_this_host_lacks_is_told(config, tmp_path):
    path = config(sockets=tmp_path / "absent", extra="[stream]\nlisten=no-such-host.invalid:1\n")
    with path.open("a") as file:
        file.write("[vmm]\nvmm-group=no-such-group\n")
    lines = complaints(run("--config", path, "--check-config"))
    for text in ("control: its directory \"%s/absent\"" % tmp_path, "vmm: its directory",
                 "vmm-group: this host has no group \"no-such-group\"",
                 "listen: \"no-such-host.invalid:1\""):
        assert any(text in line for line in lines), lines
    assert len(lines) == 4


@pytest.mark.parametrize("what", ["cert", "key", "ca"])
def test_a_certificate_that_does_not_load_is_named(config, tmp_path, what):
    path = config()
    bad = tmp_path / "bad.pem"
    bad.write_text("no PEM\n")
    done = run("--config", path, "--" + what, bad, "--check-config")
    assert str(bad) in complaints(done)[0]


def test_a_named_file_that_is_absent_is_an_error(tmp_path):
    lines = complaints(run("--config", tmp_path / "none", "--check-config"))
    assert str(tmp_path / "none") in lines[0]


def test_credentials_are_read_from_systemds_directory(config, tmp_path, pki):
    directory = pathlib.Path(pki.source.cert).parent
    path = config()
    path.write_text(path.read_text().replace(str(directory), "%d"))
    assert run("--config", path, "--check-config", CREDENTIALS_DIRECTORY=str(directory)).stdout == "OK\n"
    assert all("$CREDENTIALS_DIRECTORY" in line
               for line in complaints(run("--config", path, "--check-config")))


def test_print_config_can_be_read_back(config, tmp_path):
    first = run("--config", config(), "--bandwidth", "100M", "--allow-peer", "a", "--print-config")
    assert first.returncode == 0, first.stderr
    assert "bandwidth=100M" in first.stdout and "allow-peer=a" in first.stdout
    again = tmp_path / "again.conf"
    again.write_text(first.stdout)
    assert run("--config", again, "--print-config").stdout == first.stdout
    assert run("--config", again, "--check-config").returncode == 0


def test_a_daemon_serves_by_its_file_alone(host, pki):
    path = host.dir / "postcopyd.conf"
    path.write_text("[control]\ncontrol=%s/c\n[vmm]\nvmm=%s/v\n[tls]\ncert=%s\nkey=%s\nca=%s\n"
                    "[stream]\nallow-peer=postcopy:destination\n" % (
                        host.dir, host.dir, pki.source.cert, pki.source.key, pki.source.ca))
    ready, child = os.pipe()
    daemon = harness.Process("postcopyd", [DAEMON, "--config", path, "--ready-fd", child],
                             host.dir / "log", (child,))
    os.close(child)
    host.later(daemon.kill)
    host.later(lambda: os.close(ready))
    lines = harness.Lines(ready, "postcopyd")
    assert lines.next(harness.time.monotonic() + harness.DEADLINE_S).startswith(
        "READY port=0 "), daemon.log()
    with harness.Control(host.dir / "c") as control:
        assert control.call("List") == {"migrations": []}
    daemon.popen.terminate()
    assert daemon.wait() == 0
