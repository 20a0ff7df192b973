# SPDX-License-Identifier: Apache-2.0
"""Page streams between the daemons of two versions; and either libpostcopy at either daemon."""
import pytest

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


@pytest.mark.parametrize("destination", VERSIONS)
def test_hot_hints_of_a_newer_library(host, builds, destination):
    """An older daemon ignores them."""
    hosts = Hosts(host, builds, destination, destination)
    vmms = hosts.attach("N", destination_flags=["hot"])
    hosts.start()
    hosts.finish(vmms)
