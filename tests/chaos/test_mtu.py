# SPDX-License-Identifier: Apache-2.0
"""A path that swallows packets of full size lets connections be opened and pings be answered."""
import pytest

import pyvmm
from link import ADDRESSES

SIZE = 4 << 20

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


def test_path_that_drops_large_packets_is_found_before_the_guest_moves(host, link):
    """It was found when the guest ran at the destination and its first page did not come."""
    link.drop_large()
    daemons = {side: host.daemon(side, allow=["postcopy:" + other],
                                 listen=ADDRESSES[side] + ":0", prefix=link.enter(side))
               for side, other in (("source", "destination"), ("destination", "source"))}
    source, destination = daemons["source"], daemons["destination"]
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    source_vmm = pyvmm.SourceVmm(source, "vm1", pyvmm.guest_content(SIZE))
    destination_vmm = pyvmm.DestinationVmm(destination, "vm1", SIZE)
    host.later(source_vmm.close)
    host.later(destination_vmm.close)
    destination.call("Start", id="vm1", switchover=True)
    status = destination.wait_for_state("vm1", "failed", deadline_s=90)
    assert "full-size packets do not get through from %s" % ADDRESSES["source"] in status["reason"]
    assert "path MTU" in status["reason"]
    # Nobody has asked the guest to pause.
    source_vmm.expect(pyvmm.RESUME)
    assert source.wait_for_state("vm1", "cancelled")
