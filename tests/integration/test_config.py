# SPDX-License-Identifier: Apache-2.0
"""The configuration file as an administrator meets it: checked, printed, served from."""
import grp
import os
import pathlib
import re
import shutil
import subprocess

import pytest

import harness
import pyvmm
from pki import Identity
from test_migrate import Pair

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
needs_userfault = pytest.mark.skipif(bool(pyvmm.can_userfault()),
                                     reason=str(pyvmm.can_userfault()))
NOBODY = 65534
# Connects as a VMM that nobody has prepared for, and prints what it is told.
ATTACH_TO_NOTHING = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.settimeout(20)
sock.connect(sys.argv[1])
try:
    sock.send(bytes.fromhex(sys.argv[2]))
except BrokenPipeError:
    pass
print(sock.recv(8192)[16:].decode())
"""

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


def test_a_name_that_can_never_match_is_told(config):
    """It kept everybody out, and nobody said so."""
    path = config(extra="[stream]\nallow-peer=10.0.0.1\nallow-peer=spiffe://x/*/y\n"
                        "[control]\ncontrol-allow=CN=ops\n")
    lines = complaints(run("--config", path, "--check-config"))
    for number, text in ((10, "[stream] allow-peer: \"10.0.0.1\" can never match"),
                         (11, "[stream] allow-peer: \"spiffe://x/*/y\" can never match"),
                         (13, "[control] control-allow: \"CN=ops\" can never match")):
        assert any("%s:%d: %s" % (path, number, text) in line for line in lines), lines


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


@pytest.mark.parametrize("who, told", [
    ("expired", "certificate has expired"), ("nameless", "no name that peers could allow"),
    ("forged", "refused by peers with this CA"), ("client", "as SSL server"),
    ("server_only", "as SSL client"), ("authority", "an authority's")])
def test_an_own_certificate_that_peers_refuse_is_told(config, pki, who, told):
    """It was OK, and then no guest could be fetched from this host, or came here."""
    if who == "client":
        identity = pki.identity("client", "URI:x:a", usage="clientAuth")
    elif who == "server_only":
        identity = pki.identity("server-only", "URI:x:a", usage="serverAuth")
    elif who == "authority":
        identity = Identity(pki.ca, pki.dir / "ca.key", pki.ca)
    else:
        identity = getattr(pki, who)
    lines = complaints(run("--config", config(tls=identity), "--check-config"))
    assert any(told in line and str(identity.cert) in line for line in lines), lines


def test_a_key_that_others_can_read_is_told(config, pki, tmp_path):
    key = tmp_path / "own.key"
    shutil.copy(pki.source.key, key)
    key.chmod(0o644)
    path = config(tls=Identity(pki.source.cert, key, pki.ca))
    assert "key \"%s\" has mode 644" % key in complaints(run("--config", path, "--check-config"))[0]
    key.chmod(0o640)
    assert run("--config", path, "--check-config").stdout == "OK\n"


def test_one_path_or_port_twice_is_told(config, tmp_path):
    """The second socket took the first one's place, and no client reached its service."""
    (tmp_path / "same").symlink_to(tmp_path)
    path = config(extra="[stream]\nlisten=127.0.0.1:7777\n[metrics]\nmetrics-listen=0.0.0.0:7777\n")
    path.write_text(path.read_text().replace("vmm=%s/vmm" % tmp_path, "vmm=%s/same/control" % tmp_path))
    lines = complaints(run("--config", path, "--check-config"))
    assert any("control and vmm are one path" in line for line in lines), lines
    assert any("listen (127.0.0.1:7777) and metrics-listen (0.0.0.0:7777) are one" in line
               for line in lines), lines
    assert len(lines) == 2
    path = config(extra="[stream]\nlisten=127.0.0.1:0\n[metrics]\nmetrics-listen=127.0.0.1:0\n")
    assert run("--config", path, "--check-config").stdout == "OK\n"


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


def attach_as(daemon, uid, gid, groups=()):
    """What a VMM of another user is told."""
    message = pyvmm.attach(pyvmm.DESTINATION, "nobody", []).hex()
    become = ["setpriv", "--reuid", str(uid), "--regid", str(gid)]
    become += ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    done = subprocess.run([*become, "/usr/bin/python3", "-c", ATTACH_TO_NOTHING, daemon.vmm_path,
                           message], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          cwd="/", timeout=3 * harness.DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return "may not connect" not in done.stdout


@needs_root
def test_vmm_group_says_whose_vmms_may_attach(host):
    allowed, other = grp.getgrgid(4), grp.getgrgid(5)
    host.dir.chmod(0o755)
    daemon = host.daemon("destination", extra=["--vmm-group", allowed.gr_name])
    assert attach_as(daemon, 0, 0)
    assert attach_as(daemon, NOBODY, 0)  # the daemon's own group
    assert attach_as(daemon, NOBODY, allowed.gr_gid)
    assert attach_as(daemon, NOBODY, NOBODY, [other.gr_gid, allowed.gr_gid])
    assert not attach_as(daemon, NOBODY, NOBODY)
    assert not attach_as(daemon, NOBODY, other.gr_gid)
    assert re.search(r"uid 65534, gid %d \(process \d+\) refused: this user may not connect" % other.gr_gid,
                     daemon.log())


@needs_root
def test_without_groups_the_mode_stands_and_credentials_decide(host):
    host.dir.chmod(0o755)
    daemon = host.daemon("destination")
    assert daemon.vmm_path.stat().st_mode & 0o777 == 0o660
    assert daemon.control_path.stat().st_mode & 0o777 == 0o660
    daemon.vmm_path.chmod(0o666)
    assert attach_as(daemon, NOBODY, 0)
    assert not attach_as(daemon, NOBODY, NOBODY)


def test_an_unknown_group_ends_the_start(host):
    for key in ("vmm-group", "control-group"):
        with pytest.raises(harness.Failure, match="%s: no group .*no-such-group" % key):
            host.daemon("destination", extra=["--" + key, "no-such-group"])


def test_max_streams_and_bandwidth_are_what_a_migration_begins_with(host):
    daemon = host.daemon("destination", extra=["--max-streams", "1", "--bandwidth", "10M"])
    limits = daemon.prepare_destination("vm1", "127.0.0.1:9")["limits"]
    assert (limits["streams"], limits["bandwidth_bytes_per_s"]) == (1, 10 << 20)
    with pytest.raises(harness.ControlError, match="limits.streams: 2, must be 1..1"):
        daemon.prepare_destination("vm2", "127.0.0.1:9", streams=2)
    with pytest.raises(harness.ControlError, match="limits.streams: 2, must be 1..1"):
        daemon.call("SetLimits", id="vm1", streams=2)
    own = daemon.prepare_destination("vm3", "127.0.0.1:9", bandwidth_bytes_per_s=5)["limits"]
    assert own["bandwidth_bytes_per_s"] == 5


@needs_userfault
@pytest.mark.parametrize("slow_us, some_are_slow", [(0, True), (60000000, False)])
def test_trace_slow_us_says_which_faults_count_as_slow(host, slow_us, some_are_slow):
    import test_metrics  # it skips where its parser is absent
    pair = Pair(host, extra=["--trace-slow-us", str(slow_us), *test_metrics.METRICS])
    content = pyvmm.guest_content(1 << 20)
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", pair.source.address, bulk=False)
    with pyvmm.SourceVmm(pair.source, "vm1", content) as source, \
            pyvmm.DestinationVmm(pair.destination, "vm1", len(content)) as destination:
        pair.start("vm1")
        source.pause()
        destination.load()
        pair.destination.wait_for_state("vm1", "postcopy")
        thread, page = destination.touch(5)
        thread.join(harness.DEADLINE_S)
        assert page.raw == content[5 * pyvmm.PAGE:6 * pyvmm.PAGE]
        found = test_metrics.samples(pair.destination)
        assert (test_metrics.value(found, "postcopyd_faults_slow_total") > 0) == some_are_slow
