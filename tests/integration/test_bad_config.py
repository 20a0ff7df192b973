# SPDX-License-Identifier: Apache-2.0
"""A daemon is started again with a configuration that is wrong, amid migrations. It ended with
status 2; systemd does not start that again, and empties the descriptor store of what it gives up: each
guest that was on its way was lost by a typo."""
import pytest

import harness
import pyvmm
from keeper import drop_from_store, restart
from test_metrics import samples, value
from test_takeover import Scripted

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))

WRONG = {
    "typo": ("[stream]\nmax-streems=4\n", "max-streems"),
    "no text": ("\x00\x00", "NUL byte"),
    "no such group": ("[vmm]\nvmm-group=no-such-group\n", "no group"),
    "no such host": ("[metrics]\nmetrics-listen=no-such-host.invalid:1\n", "no-such-host.invalid"),
}


class ConfiguredPair(Scripted):
    def __init__(self, host):
        self.config = {}
        super().__init__(host)
        for daemon in (self.source, self.destination):
            self.config[daemon] = host.dir / (daemon.name + ".conf")
            daemon.command[daemon.command.index("--config") + 1] = self.config[daemon]

    def in_postcopy(self):
        self.destination.call("SetLimits", id="vm1", bulk=False)
        self.start("vm1")
        self.source_vmm.pause()
        self.destination_vmm.load()
        self.destination.wait_for_state("vm1", "postcopy")
        self.source.wait_for_state("vm1", "postcopy")

    def restart_with(self, text):
        for daemon in (self.source, self.destination):
            self.config[daemon].write_text(text)
        restart([self.source, self.destination])

    def finish(self):
        self.destination.wait_for_state("vm1", "postcopy")
        self.destination.call("SetLimits", id="vm1", bulk=True)
        super().finish()


@pytest.fixture
def pair(host):
    return ConfiguredPair(host)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_file_amid_a_migration(pair, wrong):
    text, told = WRONG[wrong]
    pair.in_postcopy()
    pair.restart_with(text)
    for daemon in (pair.source, pair.destination):
        assert told in daemon.log()
        assert "going on with the one of before; mend it and restart" in daemon.log()
        harness.eventually(lambda: told in daemon.store.last("STATUS"), "the status tells it")
        with daemon.control() as control:
            assert told in control.client.host("GetInfo").config_error
    pair.finish()


def test_it_is_a_metric_and_ends_when_the_file_is_mended(pair):
    address = "[metrics]\nmetrics-listen=127.0.0.1:0\n"
    pair.in_postcopy()
    pair.restart_with(address)
    pair.restart_with(address + "no-such-key=1\n")
    assert value(samples(pair.destination), "postcopyd_config_older") == 1
    # Again: the one of before is still the good one.
    restart([pair.source, pair.destination])
    assert value(samples(pair.destination), "postcopyd_config_older") == 1
    pair.restart_with(address)
    assert value(samples(pair.destination), "postcopyd_config_older") == 0
    pair.finish()


def test_wrong_file_without_one_of_before(pair):
    """Of an older daemon's migrations: what is right in the file is better than an end."""
    pair.in_postcopy()
    for daemon in (pair.source, pair.destination):
        for name in ("config0", "config1"):
            drop_from_store(daemon, name)
    pair.restart_with("[daemon]\ndrain-timeout=soon\n")
    assert "going on without what is wrong in it" in pair.destination.log()
    pair.finish()


def test_what_guests_can_do_without_is_no_reason_to_end(host, pair):
    """A port for metrics or gRPC that is in use ended the daemon, again and again."""
    ports = host.daemon("source").port, host.daemon("source").port
    pair.in_postcopy()
    pair.restart_with("[metrics]\nmetrics-listen=127.0.0.1:%d\n[control]\n"
                      "control-listen=127.0.0.1:%d\ncontrol-allow=postcopy:somebody\n"
                      % ports)
    assert "gRPC over TCP is not served" in pair.destination.log()
    assert "Address already in use: not served" in pair.destination.log()
    pair.finish()


def test_without_migrations_it_ends_as_ever(pair):
    pair.in_postcopy()
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    Scripted.finish(pair)
    with pytest.raises(harness.Failure) as caught:
        pair.restart_with("[stream]\nmax-streems=4\n")
    assert "ended with status 2" in str(caught.value)
    for daemon in (pair.source, pair.destination):
        pair.config[daemon].write_text("")
        daemon.start()
