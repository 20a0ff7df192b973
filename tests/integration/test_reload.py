# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: the certificates are loaded anew, and no stream is dropped."""
import re
import shutil
import signal
import ssl
import subprocess
import time

import pytest

import harness
import pyvmm
import stream
from control_client import Client
from keeper import KeptDaemon
from pki import Identity

SIZE = 1 << 20
PAGE = pyvmm.PAGE


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
           "[vmm]\nmax-migrations=1\nmax-client-migrations=1\nmax-vmms=7\n[log]\nlog-level=debug\n")
    assert is_allowed(pki.stranger) and not is_allowed(pki.controller)
    assert "max-vmms is another now, which needs a restart" in daemon.log()
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
