# SPDX-License-Identifier: Apache-2.0
"""The guest's stalls as the kernel sees them, on real vCPUs that fault inside of KVM_RUN."""
import json
import os
import pathlib
import subprocess
import time

import pytest

import harness
from test_migrate import Pair

NO_TRACER = 77

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="/dev/kvm can't be opened: no vCPUs here")


class FaultTrace:
    """fault-trace on one process; skips the test where there is nothing to trace with."""

    def __init__(self, pid, mode):
        self.popen = subprocess.Popen(
            [harness.BUILD / "tests/integration/fault-trace", str(pid), mode],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lines = harness.Lines(self.popen.stdout.fileno(), "fault-trace")
        line = self._line()
        if not line.startswith("{"):
            assert self.popen.wait(harness.DEADLINE_S) == NO_TRACER, line
            if mode in os.environ.get("POSTCOPYD_EXPECT_TRACER", "").split():
                pytest.fail("%s was expected here: %s" % (mode, line))
            pytest.skip(line)
        self.source = json.loads(line)["source"]

    def _line(self):
        return self.lines.next(time.monotonic() + harness.DEADLINE_S) or ""

    def result(self):
        self.popen.stdin.close()
        result = json.loads(self._line())
        assert self.popen.wait(harness.DEADLINE_S) == 0
        return result

    def close(self):
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self.popen.stdout.close()


def mappings(pid):
    lines = pathlib.Path("/proc/%d/maps" % pid).read_text().splitlines()
    return [range(*(int(edge, 16) for edge in line.split()[0].split("-"))) for line in lines]


@pytest.mark.parametrize("mode", ["auto", "fentry", "kprobe", "tracepoint"])
def test_stalls_of_vcpus_are_seen(host, mode):
    pair = Pair(host)
    vmms = pair.attach("vm1", memory="16M", vcpus=2)
    trace = FaultTrace(vmms[1].pid, mode)
    host.later(trace.close)
    memory = mappings(vmms[1].pid)
    began_ns = time.monotonic_ns()
    pair.start("vm1")
    pair.finish("vm1", *vmms)
    result = trace.result()
    assert mode in ("auto", trace.source)
    assert result["faults"] > 0
    assert result["lost_faults"] == 0
    assert result["stall_ns"]["count"] == result["faults"]
    assert len(result["events"]) + result["lost_events"] == result["faults"]
    # Only the vCPUs, which have a thread each, touch what has not arrived.
    assert len({event["tid"] for event in result["events"]}) <= 2
    for event in result["events"]:
        assert event["comm"] == "minivmm" and event["tid"] != vmms[1].pid, event
        assert any(event["address"] in mapping for mapping in memory), event
        assert began_ns < event["start_ns"] < event["end_ns"] < time.monotonic_ns()
    longest = max(event["end_ns"] - event["start_ns"] for event in result["events"])
    assert result["stall_ns"]["max"] >= longest
    assert 0 < result["stall_ns"]["p50"] <= result["stall_ns"]["max"]
    assert result["wakeup_delay_ns"]["max"] < result["stall_ns"]["max"]
