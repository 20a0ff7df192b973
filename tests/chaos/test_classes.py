# SPDX-License-Identifier: Apache-2.0
"""On a link that is full what a vCPU waits for goes before what nobody waits for yet."""
import pytest

import harness
import pyvmm
from link import ADDRESSES, ADDRESSES_V6

SIZE = 32 << 20
# More than is copied while a link is looked at.
LARGE = 128 << 20
NARROW_BYTES_PER_S = 4 << 20
# What waits in the link's queue when a page is asked for.
FULL = 8 << 20
# And what it may have there: a few packets.
EMPTY = 48 << 10

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


def in_postcopy(host, link, addresses, narrow, size=SIZE):
    """A guest that has moved, and its memory is behind what @narrow has made of the link."""
    daemons = {side: host.daemon(side, allow=["postcopy:" + other],
                                 listen=addresses[side] + ":0", prefix=link.enter(side))
               for side, other in (("source", "destination"), ("destination", "source"))}
    source, destination = daemons["source"], daemons["destination"]
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    source_vmm = pyvmm.SourceVmm(source, "vm1", pyvmm.guest_content(size))
    destination_vmm = pyvmm.DestinationVmm(destination, "vm1", size)
    host.later(source_vmm.close)
    host.later(destination_vmm.close)
    narrow()
    destination.call("Start", id="vm1", switchover=True)
    source_vmm.pause()
    destination_vmm.load()
    destination.wait_for_state("vm1", "postcopy")
    return source, destination, destination_vmm


@pytest.mark.parametrize("addresses", [ADDRESSES, {side: "[%s]" % address for side, address
                                                   in ADDRESSES_V6.items()}], ids=["IPv4", "IPv6"])
def test_a_fault_passes_what_waits_in_the_hosts_own_queue(host, link, addresses):
    """The urgent connection had a DSCP that put its packets into one band with bulk: each fault
    waited until all of the queue before it had left. Bulk itself leaves it empty by now: others,
    who are in bulk's band, fill it."""
    _, destination, vmm = in_postcopy(host, link, addresses,
                                      lambda: link.narrow("source", NARROW_BYTES_PER_S))
    stranger = link.flood("source")
    host.later(stranger.kill)
    for fault in range(5):
        harness.eventually(lambda: link.queue("source")[1] > FULL, "the queue is filled")
        before, waiting = link.queue("source")
        thread, _ = vmm.touch(SIZE // pyvmm.PAGE - 100 * (fault + 1))
        thread.join(harness.DEADLINE_S)
        assert not thread.is_alive()
        passed = link.queue("source")[0] - before
        assert passed < waiting // 2, "%d of %d bytes left before the page" % (passed, waiting)
    stranger.kill()
    stranger.wait()
    link.limit(None)
    destination.wait_for_state("vm1", "complete")
    assert vmm.wrong_pages(pyvmm.guest_content(SIZE)) == []


def held(daemon):
    """At how many bytes a second it holds bulk; 0: it does not."""
    pace = daemon.call("Get", id="vm1")["pace"]
    return pace and pace["bytes_per_s"] or 0


def test_bulk_leaves_the_queue_of_a_link_empty(host, link):
    """One FIFO: a fault waits for whatever bulk has in it, which was all that TCP could get in
    there. So bulk is held a little below what the link carries."""
    source, destination, vmm = in_postcopy(host, link, ADDRESSES,
                                           lambda: link.limit(NARROW_BYTES_PER_S), LARGE)
    harness.eventually(lambda: held(source), "bulk is held")
    # Nine looks of ten; what is seen now and then is that it tries for more.
    looks = [False] * 10
    harness.eventually(lambda: looks.append(link.queue("source")[1] < EMPTY) or
                       sum(looks[-10:]) >= 9, "the queue is empty")
    assert held(source) < 1.2 * NARROW_BYTES_PER_S
    assert destination.state("vm1") == "postcopy"
    link.limit(None)
    destination.wait_for_state("vm1", "complete")
    assert vmm.wrong_pages(pyvmm.guest_content(LARGE)) == []
