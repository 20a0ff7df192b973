# SPDX-License-Identifier: Apache-2.0
"""On a link that is full what a vCPU waits for goes before what nobody waits for yet."""
import pytest

import harness
import pyvmm
from link import ADDRESSES, ADDRESSES_V6

SIZE = 32 << 20
NARROW_BYTES_PER_S = 4 << 20
# What bulk has waiting in the link's queue when a page is asked for.
FULL = 256 << 10

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


@pytest.mark.parametrize("addresses", [ADDRESSES, {side: "[%s]" % address for side, address
                                                   in ADDRESSES_V6.items()}], ids=["IPv4", "IPv6"])
def test_a_fault_passes_the_bulk_that_waits_in_the_hosts_own_queue(host, link, addresses):
    """The urgent connection had a DSCP that put its packets into one band with bulk: each fault
    waited until all of the queue before it had left."""
    daemons = {side: host.daemon(side, allow=["postcopy:" + other],
                                 listen=addresses[side] + ":0", prefix=link.enter(side))
               for side, other in (("source", "destination"), ("destination", "source"))}
    source, destination = daemons["source"], daemons["destination"]
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    content = pyvmm.guest_content(SIZE)
    source_vmm = pyvmm.SourceVmm(source, "vm1", content)
    destination_vmm = pyvmm.DestinationVmm(destination, "vm1", SIZE)
    host.later(source_vmm.close)
    host.later(destination_vmm.close)
    link.narrow("source", NARROW_BYTES_PER_S)
    destination.call("Start", id="vm1", switchover=True)
    source_vmm.pause()
    destination_vmm.load()
    destination.wait_for_state("vm1", "postcopy")
    for fault in range(5):
        harness.eventually(lambda: link.queue("source")[1] > FULL, "bulk fills the queue")
        before, waiting = link.queue("source")
        thread, _ = destination_vmm.touch(SIZE // pyvmm.PAGE - 100 * (fault + 1))
        thread.join(harness.DEADLINE_S)
        assert not thread.is_alive()
        passed = link.queue("source")[0] - before
        assert passed < waiting // 2, "%d of %d bytes left before the page" % (passed, waiting)
    link.limit(None)
    destination.wait_for_state("vm1", "complete")
    assert destination_vmm.wrong_pages(content) == []
