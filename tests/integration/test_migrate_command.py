# SPDX-License-Identifier: Apache-2.0
"""A whole migration by one command: no token to carry, no second terminal."""
import os
import re
import signal
import subprocess

import pytest

import harness
import pyvmm
from test_grpc import tcp_target
from test_ids import refused

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))
SIZE = 4 << 20
CTL = harness.BUILD / "src/ctl/postcopyctl"
INTERRUPTED = 130


class Command:
    """postcopyctl migrate, under way."""

    def __init__(self, host, source, destination, *extra, migration_id="vm1"):
        self.popen = subprocess.Popen(
            [CTL, "migrate", migration_id, "--from", source, "--to", destination, *extra],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        host.later(self.popen.kill)

    def wait(self, status):
        out, err = self.popen.communicate(timeout=harness.DEADLINE_S)
        assert self.popen.returncode == status, out + err
        return out, err

    def hears(self, pattern):
        for line in self.popen.stderr:
            if re.search(pattern, line):
                return
        raise AssertionError("it ended without saying %r" % pattern)


def carry(source_vmm, destination_vmm, content):
    """What VMMs do once they are told."""
    source_vmm.pause()
    destination_vmm.load()
    for vmm in (source_vmm, destination_vmm):
        while vmm.receive()[0] != pyvmm.COMPLETE:
            pass
    assert os.pread(destination_vmm.memory_fd, SIZE, 0) == content


@pytest.fixture
def pair(host):
    both = ["postcopy:source", "postcopy:destination"]
    return [host.daemon(side, allow=both) for side in ("source", "destination")]


def test_from_nothing_to_complete(host, pair):
    source, destination = pair
    content = pyvmm.guest_content(SIZE)
    command = Command(host, source.control_path, destination.control_path)
    command.hears("waiting for the source's VMM to attach")
    with pyvmm.SourceVmm(source, "vm1", content) as source_vmm:
        command.hears("waiting for the destination's VMM to attach")
        with pyvmm.DestinationVmm(destination, "vm1", SIZE) as destination_vmm:
            carry(source_vmm, destination_vmm, content)
            out, _ = command.wait(0)
    assert "complete" in out
    # Neither of them has seen the token in a log or an answer.
    assert not re.search("[0-9a-f]{64}", out + source.log() + destination.log())


def test_a_guest_that_was_attached_by_somebody_else_keeps_its_attachment(host, pair):
    """Whoever empties a host has not prepared its guests, and does not know their tokens."""
    source, destination = pair
    content = pyvmm.guest_content(SIZE)
    source.prepare_source("vm1")
    with pyvmm.SourceVmm(source, "vm1", content) as source_vmm:
        command = Command(host, source.control_path, destination.control_path)
        command.hears("waiting for the destination's VMM to attach")
        with pyvmm.DestinationVmm(destination, "vm1", SIZE) as destination_vmm:
            carry(source_vmm, destination_vmm, content)
            command.wait(0)


def test_a_vmm_that_does_not_come_leaves_the_guest_where_it_is(host, pair):
    source, destination = pair
    source.prepare_source("vm1")
    with pyvmm.SourceVmm(source, "vm1", pyvmm.guest_content(SIZE)):
        command = Command(host, source.control_path, destination.control_path,
                          "--attach-timeout", "1")
        _, err = command.wait(1)
        assert "the destination's VMM has not attached for 1 s" in err
        assert "runs on where it is" in err
        assert source.state("vm1") == "attached"
        assert destination.state("vm1") == "cancelled"


def test_halves_that_somebody_else_prepared_are_left_to_them(host, pair):
    source, destination = pair
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    command = Command(host, source.control_path, destination.control_path,
                      "--attach-timeout", "1")
    _, err = command.wait(1)
    assert "the source's VMM has not attached for 1 s" in err
    assert source.state("vm1") == destination.state("vm1") == "prepared"


def test_given_again_after_its_end_it_says_where_the_guest_is(host, pair):
    """And does not call it moved: it may have been started at the source anew, where an adapter attaches
    as soon as it is prepared."""
    source, destination = pair
    content = pyvmm.guest_content(SIZE)
    command = Command(host, source.control_path, destination.control_path)
    command.hears("waiting")
    with pyvmm.SourceVmm(source, "vm1", content) as source_vmm, \
            pyvmm.DestinationVmm(destination, "vm1", SIZE) as destination_vmm:
        carry(source_vmm, destination_vmm, content)
        command.wait(0)
    _, err = Command(host, source.control_path, destination.control_path,
                     "--attach-timeout", "1").wait(1)
    assert "the migration before is complete" in err and str(destination.control_path) in err
    assert "has not attached" in err
    # Started here anew.
    again = Command(host, source.control_path, destination.control_path)
    again.hears("waiting")
    with pyvmm.SourceVmm(source, "vm1", content) as source_vmm, \
            pyvmm.DestinationVmm(destination, "vm1", SIZE) as destination_vmm:
        carry(source_vmm, destination_vmm, content)
        again.wait(0)


def test_interrupted_and_given_again_it_goes_on(host, pair):
    source, destination = pair
    content = pyvmm.guest_content(SIZE)
    command = Command(host, source.control_path, destination.control_path)
    command.hears("waiting for the source's VMM")
    command.popen.send_signal(signal.SIGINT)
    _, err = command.wait(INTERRUPTED)
    assert "the same command again goes on with it" in err
    again = Command(host, source.control_path, destination.control_path)
    with pyvmm.SourceVmm(source, "vm1", content) as source_vmm, \
            pyvmm.DestinationVmm(destination, "vm1", SIZE) as destination_vmm:
        carry(source_vmm, destination_vmm, content)
        again.wait(0)


def test_over_tls_and_of_daemons_that_listen_everywhere(host):
    controller = host.pki.controller
    source, destination = [
        host.daemon(side, allow=["postcopy:source", "postcopy:destination"], listen=listen,
                    extra=["--control-listen", "127.0.0.1:0", "--control-allow",
                           "postcopy:controller"])
        for side, listen in (("source", "0.0.0.0:0"), ("destination", "127.0.0.1:0"))]
    content = pyvmm.guest_content(SIZE)
    command = Command(host, tcp_target(source), tcp_target(destination), "--cert", controller.cert,
                      "--key", controller.key, "--ca", controller.ca)
    command.hears("waiting")
    with pyvmm.SourceVmm(source, "vm1", content) as source_vmm, \
            pyvmm.DestinationVmm(destination, "vm1", SIZE) as destination_vmm:
        carry(source_vmm, destination_vmm, content)
        command.wait(0)


def test_which_daemon_is_not_there_is_said(host, pair):
    source, destination = pair
    absent = host.dir / "absent.control"
    for sides in ((source.control_path, absent), (absent, destination.control_path)):
        _, err = Command(host, *sides).wait(3)
        assert str(absent) in err


def test_the_token_before_is_worth_nothing(host, pair):
    """SetToken: who has the old token does not come in, who has the new one does."""
    source, destination = pair
    old, new = "5a" * 32, "6b" * 32
    source.prepare_source("vm1", token=old)
    with pyvmm.SourceVmm(source, "vm1", pyvmm.guest_content(SIZE)) as source_vmm:
        assert source.call("SetToken", id="vm1", token=new)["state"] == "attached"
        assert source.call("SetToken", id="vm1", token=new)["state"] == "attached"
        destination.prepare_destination("vm1", source.address, token=old)
        with pyvmm.DestinationVmm(destination, "vm1", SIZE):
            destination.call("Start", id="vm1")
            failed = destination.wait_for_state("vm1", "failed")
            assert "wrong token" in failed["reason"]
        destination.prepare_destination("vm1", source.address, token=new)
        with pyvmm.DestinationVmm(destination, "vm1", SIZE):
            destination.call("Start", id="vm1")
            source_vmm.receive()
            # A holder must find its way back: from here on it is the one token.
            error = refused(source, "SetToken", id="vm1", token=old)
            assert error.code == "FAILED_PRECONDITION"
            assert refused(destination, "SetToken", id="vm1",
                           token=old).code == "FAILED_PRECONDITION"
            assert refused(source, "SetToken", id="vm1",
                           token="00" * 32).code == "INVALID_ARGUMENT"
