# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: the certificates are loaded anew, and no stream is dropped."""
import grp
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import time

import grpc
import pytest

import harness
import pyvmm
import stream
from control_client import Client
from keeper import KeptDaemon
from pki import Identity
from test_grpc import refusal, tcp_target

SIZE = 1 << 20
PAGE = pyvmm.PAGE


class FileDaemon(harness.Daemon):
    """Certificates are the file's matter: what the command line says wins."""

    def spawn(self, ready_fd):
        for option in ("--cert", "--key", "--ca"):
            if option in self.command:
                at = self.command.index(option)
                del self.command[at:at + 2]
        super().spawn(ready_fd)


@pytest.fixture
def files(host):
    """A source's files that a test may change."""
    def use(identity):
        shutil.copy(identity.cert, host.dir / "own.pem")
        shutil.copy(identity.key, host.dir / "own.key")

    use(host.pki.source)
    return Identity(host.dir / "own.pem", host.dir / "own.key", host.pki.ca), use


def shown_certificate(daemon, pki):
    connection = stream.dial(daemon.port, pki.destination)
    certificate = connection.sock.getpeercert(binary_form=True)
    connection.close()
    return certificate


def test_new_connections_show_the_new_certificate(host, files, pki):
    identity, use = files
    daemon = host.daemon("source", identity=identity, kind=KeptDaemon)
    before = shown_certificate(daemon, pki)
    use(pki.server)
    assert shown_certificate(daemon, pki) == before
    daemon.popen.send_signal(signal.SIGHUP)
    daemon.wait_for_log("the certificates are loaded anew")
    assert shown_certificate(daemon, pki) != before
    harness.eventually(lambda: daemon.store.said("RELOADING=1"), "RELOADING=1 is told")
    assert daemon.store.last("READY") == "1"


def test_files_that_are_wrong_leave_those_of_before(host, files, pki):
    identity, _ = files
    daemon = host.daemon("source", identity=identity)
    before = shown_certificate(daemon, pki)
    identity.key.write_text("no key")
    daemon.popen.send_signal(signal.SIGHUP)
    daemon.wait_for_log("those of before stay")
    assert "own.key" in daemon.log()
    assert shown_certificate(daemon, pki) == before


@pytest.mark.skipif(pyvmm.can_userfault() is not None, reason=str(pyvmm.can_userfault()))
def test_streams_go_on(host, files, pki):
    identity, use = files
    source = host.daemon("source", identity=identity)
    destination = host.daemon("destination")
    content = pyvmm.guest_content(SIZE)
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address, bulk=False)
    source_vmm = pyvmm.SourceVmm(source, "vm1", content)
    destination_vmm = pyvmm.DestinationVmm(destination, "vm1", SIZE)
    host.later(source_vmm.close)
    host.later(destination_vmm.close)
    destination.call("Start", id="vm1")
    source_vmm.pause()
    destination_vmm.load()
    use(pki.server)
    for daemon in (source, destination):
        daemon.popen.send_signal(signal.SIGHUP)
        daemon.wait_for_log("the certificates are loaded anew")
    thread, page = destination_vmm.touch(5)
    thread.join(harness.DEADLINE_S)
    assert page.raw == content[5 * PAGE:6 * PAGE]
    destination.call("SetLimits", id="vm1", bulk=True)
    assert destination.wait_for_state("vm1", "complete")["reconnects"] == 0


def test_certificate_that_expires_soon_is_told_of(host):
    """Those of the tests are good for two days."""
    host.daemon("source").wait_for_log("this host's certificate expires in 1 days")


def test_metrics_show_the_new_certificate(host, files, pki):
    identity, use = files
    daemon = host.daemon("source", identity=identity,
                         extra=["--metrics-listen", "127.0.0.1:0", "--metrics-tls", "yes"])
    address = "127.0.0.1", int(re.search(r"metrics on port (\d+)", daemon.log()).group(1))
    before = ssl.get_server_certificate(address)
    use(pki.server)
    daemon.popen.send_signal(signal.SIGHUP)
    daemon.wait_for_log("the certificates are loaded anew")
    assert before != ssl.get_server_certificate(address) == pki.server.cert.read_text()


def test_the_day_it_expires_is_told_by_host_and_metrics(host, pki):
    import test_metrics  # it skips where its parser is absent
    daemon = host.daemon("source", extra=test_metrics.METRICS)
    with Client("unix:%s" % daemon.control_path) as client:
        expiry = client.host("GetInfo").certificate_expiry.seconds
    assert time.time() < expiry < time.time() + 3 * 24 * 3600
    assert test_metrics.value(test_metrics.samples(daemon),
                              "postcopyd_certificate_expiry_timestamp_seconds") == expiry


def reread(daemon, path, text):
    path.write_text(text)
    before = daemon.log().count("loaded anew")
    daemon.popen.send_signal(signal.SIGHUP)
    harness.eventually(lambda: daemon.log().count("loaded anew") > before, "it is read")


def test_the_file_is_read_again(host, pki):
    """A name that was allowed by mistake, or a limit, took a restart of the daemon to change."""
    path = host.dir / "own.conf"
    path.write_text("[control]\ncontrol-listen=127.0.0.1:0\ncontrol-allow=postcopy:controller\n")
    daemon = host.daemon("source", extra=["--config", path])
    daemon.prepare_source("vm1")
    port = re.search(r"gRPC over TCP on port (\d+)", daemon.log()).group(1)

    def is_allowed(identity):
        done = subprocess.run([harness.BUILD / "src/ctl/postcopyctl", "list", "--control",
                               "127.0.0.1:" + port, "--cert", identity.cert, "--key", identity.key,
                               "--ca", identity.ca], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=harness.DEADLINE_S)
        return done.returncode == 0

    assert is_allowed(pki.controller) and not is_allowed(pki.stranger)
    reread(daemon, path, "[control]\ncontrol-listen=127.0.0.1:0\ncontrol-allow=postcopy:stranger\n"
           "[vmm]\nmax-migrations=1\nmax-client-migrations=1\nmax-vmms=7\n[trace]\ntrace=off\n[log]\nlog-level=debug\n")
    assert is_allowed(pki.stranger) and not is_allowed(pki.controller)
    assert "trace is another now, which needs a restart" in daemon.log()
    assert "max-vmms is another" not in daemon.log()
    assert "max-migrations is another" not in daemon.log()
    # One that is wrong changes nothing.
    reread(daemon, path, "[control]\ncontrol-allow=postcopy:controller\n[vmm]\nmax-wmms=1\n")
    assert "no such key" in daemon.log() and "the one of before stays" in daemon.log()
    assert is_allowed(pki.stranger) and not is_allowed(pki.controller)


def test_limits_are_read_again(host):
    path = host.dir / "own.conf"
    path.write_text("")
    daemon = host.daemon("destination", extra=["--config", path])
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    reread(daemon, path, "[vmm]\nprepare-timeout=1\n")
    assert "prepare-timeout" in daemon.wait_for_state("vm1", "cancelled")["reason"]


def info(daemon):
    done = subprocess.run([harness.BUILD / "src/ctl/postcopyctl", "info", "--json", "--control",
                           daemon.control_path], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=True, timeout=harness.DEADLINE_S)
    return json.loads(done.stdout)


def reload(daemon, path, text):
    """Until the daemon says how it ended."""
    path.write_text(text)
    before = info(daemon).get("last_reload")
    daemon.popen.send_signal(signal.SIGHUP)
    harness.eventually(lambda: info(daemon).get("last_reload") != before, "it is read")
    return info(daemon)


def test_how_a_reload_ended_is_kept(host):
    """A failed one was some lines in the log, and then the daemon looked like any other."""
    import test_metrics  # it skips where its parser is absent
    path = host.dir / "own.conf"
    path.write_text("")
    daemon = host.daemon("source", extra=["--config", path, *test_metrics.METRICS])
    metric = "postcopyd_config_reload_success"

    def read(name):
        return test_metrics.value(test_metrics.samples(daemon), name)

    assert "last_reload" not in info(daemon) and read(metric) == 1
    started = read(metric + "_timestamp_seconds")
    assert abs(started - time.time()) < 60
    told = reload(daemon, path, "[vmm]\nmax-wmms=1\n")
    assert "max-wmms" in told["last_reload"]["error"] and "own.conf:2" in told["last_reload"]["error"]
    assert (read(metric), read(metric + "_timestamp_seconds")) == (0, started)
    told = reload(daemon, path, "[tls]\n[log]\nlog-format=json\n[metrics]\nmetrics-tls=yes\n")
    assert told["last_reload"]["error"] == "" and read(metric) == 1
    assert told["needs_restart"] == ["metrics-tls", "log-format"]
    assert "log-format is another now, which needs a restart" in daemon.log()
    told = reload(daemon, path, "")
    assert told["needs_restart"] == [] and told["last_reload"]["error"] == ""
    shown = subprocess.run([harness.BUILD / "src/ctl/postcopyctl", "info", "--control",
                            daemon.control_path], stdin=subprocess.DEVNULL, capture_output=True,
                           text=True, check=True, timeout=harness.DEADLINE_S).stdout
    assert re.search(r"last reload +\d{4}-.*: ok", shown)


def test_other_files_of_certificates_are_taken(host, files, pki):
    """Only what lay at the same paths was new; a path of another name took a restart."""
    path = host.dir / "own.conf"
    text = "[tls]\ncert=%s\nkey=%s\nca=" + str(pki.ca) + "\n"
    path.write_text(text % (pki.source.cert, pki.source.key))
    daemon = host.daemon("source", extra=["--config", path], kind=FileDaemon)
    before = shown_certificate(daemon, pki)
    told = reload(daemon, path, text % (pki.server.cert, pki.server.key))
    assert told["last_reload"]["error"] == "" and told["needs_restart"] == []
    after = shown_certificate(daemon, pki)
    assert after != before
    # Nothing of one that can't be is in effect.
    told = reload(daemon, path, text % (pki.source.cert, host.dir / "none") +
                  "[vmm]\nmax-migrations=1\nmax-client-migrations=1\n")
    assert str(host.dir / "none") in told["last_reload"]["error"]
    assert shown_certificate(daemon, pki) == after
    for number in range(20):
        daemon.prepare_source("vm%d" % number)


def test_limits_of_vmms_and_streams_change(host):
    path = host.dir / "own.conf"
    path.write_text("")
    daemon = host.daemon("destination", extra=["--config", path])
    silent = pyvmm.Socket(daemon.vmm_path)
    reload(daemon, path, "[vmm]\nattach-timeout=1\n[stream]\nmax-streams=3\nbandwidth=7M\n")
    # It waits since before, and the new time counts for it.
    assert "attach-timeout" in silent.expect_error()[1]
    silent.close()
    limits = daemon.prepare_destination("vm1", "127.0.0.1:9")["limits"]
    assert limits["bandwidth_bytes_per_s"] == 7 << 20 and limits["streams"] <= 3
    with pytest.raises(harness.ControlError) as caught:
        daemon.prepare_destination("vm2", "127.0.0.1:9", streams=4)
    assert "must be 1..3" in caught.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="other users' processes need root")
def test_groups_change(host):
    from test_config import attach_as
    from test_roles import NOBODY, ctl_as
    allowed = grp.getgrgid(4)
    host.dir.chmod(0o755)
    path = host.dir / "own.conf"
    path.write_text("[control]\ncontrol-group=%s\n[vmm]\nvmm-group=%s\n" % (allowed.gr_name,
                                                                          allowed.gr_name))
    daemon = host.daemon("destination", extra=["--config", path])
    assert attach_as(daemon, NOBODY, allowed.gr_gid)
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    assert ctl_as(daemon, allowed.gr_gid, "cancel", "vm1").returncode == 0
    reload(daemon, path, "[control]\ncontrol-read-group=%s\n" % allowed.gr_name)
    assert not attach_as(daemon, NOBODY, allowed.gr_gid)
    assert ctl_as(daemon, allowed.gr_gid, "status", "vm1").returncode == 0
    assert "control-group" in ctl_as(daemon, allowed.gr_gid, "delete", "vm1").stderr
    told = reload(daemon, path, "[control]\ncontrol-read-group=no-such-group\n")
    assert "no-such-group" in told["last_reload"]["error"]
    assert ctl_as(daemon, allowed.gr_gid, "status", "vm1").returncode == 0


def test_the_last_name_that_goes_leaves_nobody(host, pki):
    """The port stayed open when control-listen and control-allow were taken out of the file, and
    from then on any certificate of the CA could drive the daemon."""
    path = host.dir / "own.conf"
    path.write_text("[control]\ncontrol-listen=127.0.0.1:0\ncontrol-allow=postcopy:controller\n")
    daemon = host.daemon("source", identity=pki.server, extra=["--config", path])
    target = "localhost:" + re.search(r"gRPC over TCP on port (\d+)", daemon.log()).group(1)
    with Client(target, pki.controller) as client:
        assert client.host("GetInfo").version
    assert reload(daemon, path, "")["needs_restart"] == ["control-listen"]
    for identity in (pki.controller, pki.stranger):
        with Client(target, identity) as client, pytest.raises(grpc.RpcError):
            client.host("GetInfo")


def test_a_connection_that_stands_is_judged_again(host, pki):
    """An operator whose name was taken out could cancel guests for as long as it stayed connected."""
    path = host.dir / "own.conf"
    config = "[control]\ncontrol-listen=127.0.0.1:0\n"
    path.write_text(config + "control-allow=postcopy:controller\ncontrol-allow=postcopy:stranger\n")
    daemon = host.daemon("source", identity=pki.server, extra=["--config", path])
    daemon.prepare_source("vm1")
    target = tcp_target(daemon)
    with Client(target, pki.controller) as operator, Client(target, pki.stranger) as other:
        watch, theirs = (client.migrations("Watch", id="vm1") for client in (operator, other))
        assert next(watch).id == next(theirs).id == "vm1"
        reload(daemon, path, config + "control-allow=postcopy:controller\ncontrol-read=postcopy:stranger\n")
        # On the same connection: what runs goes on, and it changes nothing any more.
        assert next(theirs).id == "vm1"
        refusal(grpc.StatusCode.PERMISSION_DENIED, other.migrations, "Cancel", id="vm1")
        reload(daemon, path, config + "control-allow=postcopy:controller\n")
        with pytest.raises(grpc.RpcError) as caught:
            for _ in theirs:
                pass
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        refusal(grpc.StatusCode.UNAVAILABLE, other.migrations, "Get", id="vm1")
        assert next(watch).id == "vm1" and daemon.state("vm1") == "prepared"
        operator.migrations("Cancel", id="vm1")
    assert re.search(r"postcopy:stranger.* may not connect any more", daemon.log())
    with Client("unix:%s" % daemon.control_path) as root:
        assert root.host("GetInfo").version


@pytest.mark.skipif(os.geteuid() != 0, reason="other users' processes need root")
def test_a_local_connection_that_stands_is_judged_again(host):
    allowed = grp.getgrgid(4)
    host.dir.chmod(0o755)
    path = host.dir / "own.conf"
    path.write_text("[control]\ncontrol-group=%s\n" % allowed.gr_name)
    daemon = host.daemon("source", extra=["--config", path])
    daemon.prepare_source("vm1")
    watching = subprocess.Popen(
        ["setpriv", "--reuid", "65534", "--regid", str(allowed.gr_gid), "--clear-groups",
         harness.BUILD / "src/ctl/postcopyctl", "watch", "vm1", "--json", "--control",
         daemon.control_path], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    assert "prepared" in watching.stdout.readline()
    reload(daemon, path, "[control]\ncontrol-read-group=%s\n" % allowed.gr_name)
    assert watching.poll() is None
    reload(daemon, path, "")
    _, told = watching.communicate(timeout=harness.DEADLINE_S)
    assert watching.returncode != 0 and "may not connect any more" in told
    assert daemon.state("vm1") == "prepared"
