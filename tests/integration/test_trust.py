# SPDX-License-Identifier: Apache-2.0
"""Who may be a peer, and what both sides are told where one may not."""
import pyvmm


def fail_to_start(host, source, destination):
    """A migration between the two fails: the reason that the destination gives."""
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    source_vmm = pyvmm.SourceVmm(source, "vm1", pyvmm.guest_content(1 << 20))
    destination_vmm = pyvmm.DestinationVmm(destination, "vm1", 1 << 20)
    host.later(source_vmm.close)
    host.later(destination_vmm.close)
    destination.call("Start", id="vm1")
    return destination.wait_for_state("vm1", "failed")["reason"]


def test_source_that_refuses_a_name_says_so_to_the_destination(host):
    """Its reason was "the peer closed the connection": as good as a bad network."""
    source = host.daemon("source", allow=["spiffe://example.org/host/*", "*.example.org"])
    reason = fail_to_start(host, source, host.daemon("destination"))
    assert "refuses: it does not allow the name of this host" in reason
    source.wait_for_log('peer \\"postcopy:destination\\" is not among the allowed names')


def test_destination_that_refuses_a_name_says_so_to_the_source(host):
    source = host.daemon("source")
    destination = host.daemon("destination", allow=["DNS:postcopy.example.org"])
    assert '"postcopy:source" is not among the allowed names' in fail_to_start(host, source,
                                                                              destination)
    source.wait_for_log("refuses: it does not allow the name of this host")


def test_revoked_certificate_is_refused(host, pki):
    """A host that was taken over could not be shut out before its certificate's end."""
    crl = pki.crl(host.dir / "crl.pem", [pki.destination])
    source = host.daemon("source", extra=["--crl", crl])
    assert "this host's certificate is revoked" in fail_to_start(host, source,
                                                                 host.daemon("destination"))
    source.wait_for_log("certificate revoked")
