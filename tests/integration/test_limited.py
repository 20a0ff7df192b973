# SPDX-License-Identifier: Apache-2.0
"""What keeps a migration from being faster, as status and watch tell it."""
import os
import pty
import subprocess

import pytest

import harness
from proxy import Proxy
from test_migrate import Pair

# Seconds that the network takes each way.
DELAY_S = 0.2

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="/dev/kvm can't be opened: no vCPUs here")


def is_limited_by(pair, what):
    def limited():
        with pair.destination.control() as control:
            migration = control.call("Get", id="vm1")
        assert migration["state"] not in ("complete", "failed"), migration["reason"]
        return migration["limited_by"] == what
    harness.eventually(limited, "what limits it is told: %s" % what)


def watch_line(pair, columns):
    """What a terminal of so many columns shows, until the cap and a forecast are told."""
    terminal, child = pty.openpty()
    os.set_blocking(terminal, False)
    subprocess.run(["stty", "-F", os.ttyname(child), "columns", str(columns)], check=True)
    watch = subprocess.Popen([harness.BUILD / "src/ctl/postcopyctl", "--control",
                              pair.destination.control_path, "watch", "vm1"],
                             stdin=subprocess.DEVNULL, stdout=child)
    os.close(child)
    shown = bytearray()

    def forecast():
        try:
            shown.extend(os.read(terminal, 65536))
        except BlockingIOError:
            pass
        return b"/s (cap)  source off in" in shown
    try:
        harness.eventually(forecast, "a forecast")
    finally:
        watch.kill()
        watch.wait()
        os.close(terminal)
    return shown.decode(errors="replace").replace("\x1b[K", "").split("\r")


def test_the_cap_and_what_comes_without_bulk(host):
    pair = Pair(host)
    # 64 MiB: for minutes, whatever else the host has to do.
    vmms = pair.attach("vm1", {"bandwidth_bytes_per_s": 256 << 10, "streams": 2}, workload="idle")
    pair.start("vm1")
    is_limited_by(pair, "cap")
    lines = watch_line(pair, 80)
    assert all(len(line) < 80 for line in lines), lines
    pair.destination.call("SetLimits", id="vm1", bulk=False)
    is_limited_by(pair, "faults")
    pair.destination.call("SetLimits", id="vm1", bulk=True, bandwidth_bytes_per_s=0)
    migration = pair.finish("vm1", *vmms)
    assert migration["limited_by"] is None


def test_the_network(host):
    pair = Pair(host)
    proxy = Proxy(pair.source.address)
    host.later(proxy.close)
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", proxy.address, streams=1, bulk=False)
    options = {"memory": "64M", "backend": "memfd", "workload": "idle", "run_after_complete": 50}
    source_vmm = host.minivmm("source", pair.source, "vm1", **options)
    destination_vmm = host.minivmm("destination", pair.destination, "vm1", **options)
    source_vmm.wait_for_event("attached")
    destination_vmm.wait_for_event("attached")
    pair.start("vm1")
    pair.destination.wait_for_state("vm1", "postcopy")
    proxy.delay(DELAY_S)
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    is_limited_by(pair, "network")
    proxy.delay(0)
    pair.finish("vm1", source_vmm, destination_vmm)
