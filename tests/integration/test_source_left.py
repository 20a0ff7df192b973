# SPDX-License-Identifier: Apache-2.0
"""A source whose guest may run elsewhere, and a daemon that comes back to less than it has left."""
import errno

import pytest

import pyvmm
from harness import ControlError
from keeper import KeptDaemon, drop_from_store
from test_holder import fence, fence_when_silent, told_nothing
from test_recover import SIZE, Pair, pytestmark  # noqa: F401


@pytest.mark.parametrize("name", ["mem0.vm1", "vmstate.vm1"])
def test_source_guest_that_has_moved_does_not_run_on_for_want_of_its_memory(host, name):
    """The next daemon found a descriptor missing, said "failed" and RESUME: two guests ran, and the
    one at the destination was told that it must not."""
    pair = Pair(host, kind=KeptDaemon)
    pair.run()
    pair.source.wait_for_state("vm1", "postcopy")
    pair.source.crash()
    drop_from_store(pair.source, name)
    pair.source.start()
    assert pair.source.state("vm1") == "postcopy"
    assert "not taken over yet" in pair.source.call("Get", id="vm1")["reason"]
    assert told_nothing(pair.source_vmm)
    pair.destination.wait_for_state("vm1", "paused")
    if name != "mem0.vm1":
        # Its memory is nobody else's meanwhile: a try to take it over had had it in its hands.
        pair.source.prepare_source("vm2")
        with pyvmm.Socket(pair.source.vmm_path) as other:
            other.send(pyvmm.attach(pyvmm.SOURCE, "vm2", [pyvmm.Region(SIZE)]),
                       [pair.source_vmm.memory_fd])
            code, text = other.expect_error()
        assert code == errno.EBUSY and "not taken over" in text
    # The way out is an operator's word, as where the destination is gone.
    assert fence_when_silent(pair, "RunOn")["state"] == "cancelled"
    pair.source_vmm.expect(pyvmm.RESUME)
    pair.destination.wait_for_state("vm1", "failed")
    pair.destination_vmm.expect_failure()


def test_holder_is_not_gone_because_the_daemon_was(host):
    """A daemon that had just begun had heard nobody, and took that for silence: RunOn was done at
    once, while the destination was on its way back, with its guest running."""
    pair = Pair(host, kind=KeptDaemon)
    pair.run()
    pair.source.wait_for_state("vm1", "postcopy")
    pair.proxy.refuse(True)
    pair.source.crash_and_restart()
    with pytest.raises(ControlError) as caught:
        fence(pair, "RunOn")
    assert "it is not gone yet" in caught.value.message
    pair.proxy.refuse(False)
    pair.read(9)
    pair.finish()


def test_vmm_that_dies_before_it_has_loaded_gives_the_guest_back(host):
    """A daemon that had been restarted while warm took it for one that had been given the vmstate
    before: the source's guest, which had run nowhere, stood still until somebody commanded."""
    pair = Pair(host, destination_kind=KeptDaemon)
    pair.destination.call("Start", id="vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.destination.crash_and_restart()
    pair.destination.wait_for_state("vm1", "warming")
    pair.destination.call("Switchover", id="vm1")
    pair.source_vmm.pause()
    pair.destination_vmm.expect(pyvmm.VMSTATE)
    pair.destination_vmm.sock.close()
    pair.source_vmm.expect(pyvmm.RESUME)


def test_poison_without_a_record_is_dropped(host):
    """It stayed, and was taken for what the next guest of that name had brought along."""
    pair = Pair(host, kind=KeptDaemon)
    pair.destination.call("Start", id="vm1")
    pair.source_vmm.pause(poisoned_ranges=[(0, 5, 1)])
    pair.destination_vmm.load()
    pair.source.wait_for_state("vm1", "postcopy")
    pair.source.crash()
    drop_from_store(pair.source, "record.vm1")
    pair.source.start()
    pair.source.store.settle()
    assert not [name for name in pair.source.store.names() if name.endswith(".vm1")]
