# SPDX-License-Identifier: Apache-2.0
"""Page streams between the daemons of two versions; and either libpostcopy at either daemon."""
import os

import pytest

import pyvmm
from hosts import OTHER, VERSIONS, Hosts
from test_migrate import pytestmark  # noqa: F401

CROSSED = pytest.mark.parametrize("source, destination", list(OTHER.items()),
                                  ids=["from-%s" % version for version in OTHER])


@CROSSED
@pytest.mark.parametrize("vmm", VERSIONS)
@pytest.mark.parametrize("warm", [None, {"max_rounds": 2}], ids=["plain", "warm"])
def test_page_stream_and_library(host, builds, source, destination, vmm, warm):
    """So each library is at each daemon as well, as source and as destination."""
    hosts = Hosts(host, builds, source, destination)
    vmms = hosts.attach(vmm)
    hosts.start(**({"warm": warm} if warm else {}))
    migration = hosts.finish(vmms)
    # Which version it is the older one does not say, to whom it knows nothing of that either.
    newer = hosts.source if source == "N" else hosts.destination
    assert newer.call("Get", id="vm1")["peer_version"] == ""
    if warm:
        assert migration["warm"]["refused"] == "" and migration["warm"]["rounds"] >= 1, migration


@pytest.mark.parametrize("source", VERSIONS)
@pytest.mark.parametrize("vmm", VERSIONS)
@pytest.mark.parametrize("warm", [None, {"max_rounds": 2}], ids=["plain", "warm"])
def test_several_userfaultfds(host, builds, source, vmm, warm):
    """An older library passes the offer over; an older source has room for one urgent connection."""
    hosts = Hosts(host, builds, source, "N", newer="--fault-threads=4")
    vmms = hosts.attach(vmm, vcpus=2)
    hosts.start(**({"warm": warm} if warm else {}))
    hosts.finish(vmms)
    assert ("4 userfaultfds watch" in hosts.destination.log()) == (vmm == "N")


@pytest.mark.parametrize("destination", VERSIONS)
def test_hot_hints_of_a_newer_library(host, builds, destination):
    """An older daemon ignores them."""
    hosts = Hosts(host, builds, destination, destination)
    vmms = hosts.attach("N", destination_flags=["hot"])
    hosts.start()
    hosts.finish(vmms)


@CROSSED
def test_a_destination_that_gives_up(host, builds, source, destination):
    """Why is said to a source that takes it; to one of before it would be a frame of a wrong length."""
    hosts = Hosts(host, builds, source, destination)
    hosts.source.prepare_source("vm1")
    hosts.destination.prepare_destination("vm1", hosts.source.address)
    content = pyvmm.guest_content(1 << 20)
    there = pyvmm.SourceVmm(hosts.source, "vm1", content)
    here = pyvmm.DestinationVmm(hosts.destination, "vm1", len(content))
    host.later(there.close)
    host.later(here.close)
    hosts.start()
    there.pause()
    here.expect(pyvmm.VMSTATE)
    here.sock.close()
    there.expect(pyvmm.RESUME)
    reason = hosts.source.wait_for_state("vm1", "cancelled")["reason"]
    assert reason == "the destination has given up before it ran"


@CROSSED
def test_a_vmstate_that_is_said_to_be_there_in_part(host, builds, source, destination):
    """Of a VMM whose library knows that; the daemon of before passes it over, or is not told."""
    hosts = Hosts(host, builds, source, destination)
    hosts.source.prepare_source("vm1")
    hosts.destination.prepare_destination("vm1", hosts.source.address)
    content, vmstate = pyvmm.guest_content(1 << 20), b"the vmstate"
    there = pyvmm.SourceVmm(hosts.source, "vm1", content, vmstate)
    here = pyvmm.DestinationVmm(hosts.destination, "vm1", len(content))
    host.later(there.close)
    host.later(here.close)
    hosts.start()
    there.expect(pyvmm.PAUSE)
    fd = pyvmm.memfd(vmstate)
    there.send(pyvmm.ahead(5), [fd])
    os.close(fd)
    fd = pyvmm.sealed_memfd(vmstate)
    there.send(pyvmm.paused(len(vmstate)), [fd])
    os.close(fd)
    assert here.load() == vmstate
    here.expect(pyvmm.COMPLETE)
    assert os.pread(here.memory_fd, len(content), 0) == content
