# SPDX-License-Identifier: Apache-2.0
"""Private guest memory (KVM memory attributes): known on both sides, told to the destination's
VMM, and refused before the guest is paused."""
import errno
import os
import re
import struct

import pytest

import pyvmm
from pyvmm import Region

SIZE = 1 << 20
REFUSAL = r"region 1 is private guest memory \(KVM memory attributes\), which the source host can't read"

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                               reason="/dev/kvm can't be opened: no vCPUs here")


@pytest.fixture
def daemons(host):
    source = host.daemon("source", allow=["postcopy:destination"])
    destination = host.daemon("destination", allow=["postcopy:source"])
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    return source, destination


def assert_refused(daemon):
    migration = daemon.wait_for_state("vm1", "failed")
    assert re.match(REFUSAL, migration["reason"]), migration["reason"]
    assert "\n" not in migration["reason"]


@needs_kvm
@pytest.mark.parametrize("both", [True, False], ids=["both sides say so", "only the source says so"])
def test_guest_with_private_memory_stays_and_runs_on(host, daemons, both):
    source, destination = daemons
    options = {"memory": "32M", "workload": "random"}
    source_vmm = host.minivmm("source", source, "vm1", flags=["private-region"], **options)
    if both:
        destination_vmm = host.minivmm("destination", destination, "vm1", flags=["private-region"],
                                       **options)
        destination_vmm.wait_for_event("attached")
    else:
        destination_vmm = python_destination(destination, [0, 0], 32 << 20)
    source_vmm.wait_for_event("attached")
    destination.call("Start", id="vm1")
    if both:
        assert destination_vmm.wait_for_event("attributes")["reason"] == "0 1"
        assert destination_vmm.wait() == 1
        assert re.search(REFUSAL, destination_vmm.log())
    else:
        assert_told([0, pyvmm.PRIVATE], destination_vmm)
        destination_vmm.close()
    assert_refused(destination)
    assert_refused(source)
    assert re.match(REFUSAL, source_vmm.wait_for_event("failed")["reason"])
    assert not any(event["event"] == "paused" for event in source_vmm.events)
    source_vmm.popen.terminate()
    result = source_vmm.wait_for_event("result")
    assert result["pages_bad"] == 0 and source_vmm.wait() == 0


def python_destination(daemon, flags, size):
    """Two regions behind each other, the second of 2 MiB, as minivmm has them."""
    vmm = pyvmm.Socket(daemon.vmm_path)
    total = size + (2 << 20)
    fd = pyvmm.memfd(size=total)
    addr = pyvmm.map_shared(fd, total)
    uffd = pyvmm.userfaultfd(addr, total)
    mode = pyvmm.UFFD_MODE_MISSING | pyvmm.UFFD_MODE_MINOR
    regions = [Region(size, host_addr=addr, fd_index=1, uffd_mode=mode, flags=flags[0]),
               Region(2 << 20, guest_phys_addr=size, host_addr=addr + size, fd_offset=size,
                      fd_index=1, uffd_mode=mode, flags=flags[1])]
    vmm.send(pyvmm.attach(pyvmm.DESTINATION, "vm1", regions, pyvmm.UFFD_FEATURES), [uffd, fd])
    os.close(uffd)
    os.close(fd)
    vmm.expect(pyvmm.ATTACHED)
    return vmm


def assert_told(flags, vmm):
    """ATTRIBUTES with the source's flags, then why the migration failed."""
    payload, _ = vmm.expect(pyvmm.ATTRIBUTES)
    assert list(struct.unpack("<%dI" % (len(flags) + 1), payload)) == [len(flags)] + flags
    code, text = vmm.expect_failure()
    assert code == errno.EOPNOTSUPP and re.match(REFUSAL, text), text


def python_source(daemon, flags):
    vmm = pyvmm.Socket(daemon.vmm_path)
    fd = pyvmm.memfd(size=SIZE + (2 << 20))
    regions = [Region(SIZE, flags=flags[0]),
               Region(2 << 20, guest_phys_addr=SIZE, host_addr=0x20000000, fd_offset=SIZE,
                      flags=flags[1])]
    vmm.send(pyvmm.attach(pyvmm.SOURCE, "vm1", regions), [fd])
    os.close(fd)
    vmm.expect(pyvmm.ATTACHED)
    return vmm


def needs_userfaultfd():
    reason = pyvmm.can_userfault()
    if reason:
        pytest.skip(reason)


def test_source_vmm_is_told_why_and_never_paused(daemons):
    needs_userfaultfd()
    source, destination = daemons
    source_vmm = python_source(source, [0, pyvmm.PRIVATE])
    destination_vmm = python_destination(destination, [0, 0], SIZE)
    destination.call("Start", id="vm1")
    assert_told([0, pyvmm.PRIVATE], destination_vmm)
    code, text = source_vmm.expect_failure()  # with no PAUSE before it
    assert code == errno.EOPNOTSUPP and re.match(REFUSAL, text), text
    source_vmm.close()
    destination_vmm.close()


def test_region_that_is_private_at_the_destination_only_is_refused_too(daemons):
    needs_userfaultfd()
    source, destination = daemons
    source_vmm = python_source(source, [0, 0])
    destination_vmm = python_destination(destination, [0, pyvmm.PRIVATE], SIZE)
    destination.call("Start", id="vm1")
    code, text = destination_vmm.expect_failure()
    assert code == errno.EOPNOTSUPP and re.match(REFUSAL, text), text
    source_vmm.expect(pyvmm.RESUME)
    source_vmm.close()
    destination_vmm.close()


def test_flag_beside_it_is_refused(daemons):
    source, _ = daemons
    fd = pyvmm.memfd(size=SIZE)
    with pyvmm.Socket(source.vmm_path) as sock:
        sock.send(pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(SIZE, flags=5)]), [fd])
        code, text = sock.expect_error()
    os.close(fd)
    assert code == errno.EINVAL and "flags 0x4" in text, text
