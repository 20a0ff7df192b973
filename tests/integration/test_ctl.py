# SPDX-License-Identifier: Apache-2.0
"""postcopyctl as a person or a script calls it: what it prints and how it ends."""
import json
import os
import re
import subprocess

import pytest

import harness
from harness import TOKEN

CTL = harness.BUILD / "src/ctl/postcopyctl"
PERCENTILES = {"p50", "p90", "p99", "p999", "max"}

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                               reason="/dev/kvm can't be opened: no vCPUs here")


def run(*arguments):
    return subprocess.run([CTL, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=4 * harness.DEADLINE_S)


def bench(*arguments):
    return run("bench", "--memory", "32M", *arguments)


def test_check_prints_a_reason_for_each_no():
    done = run("check")
    assert done.returncode in (0, 2), done.stderr
    assert "memfd" in done.stdout and "guest_memfd" in done.stdout
    for line in done.stdout.splitlines():
        assert not re.search(r"\bno\s*$", line), "a \"no\" without its reason: " + line


def test_check_as_json_says_the_same():
    done = run("check", "--json")
    assert isinstance(json.loads(done.stdout), dict)


def test_check_names_the_source_of_the_stalls():
    tracer = json.loads(run("check", "--json").stdout)["fault_tracer"]
    assert tracer["source"] in ("fentry", "kprobe", "tracepoint", "daemon")
    # the best needs no excuse, all others do
    assert (tracer["source"] == "fentry") == (tracer["why"] == "")
    line = next(l for l in run("check").stdout.splitlines() if l.startswith("guest stalls"))
    assert tracer["why"] in line
    assert tracer["source"] in line


@needs_kvm
def test_bench_prints_its_contract():
    done = bench("--json", "--workload", "random", "--vcpus", 2, "--streams", 2)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"backend", "memory_bytes", "page_bytes", "workload", "streams", "tls", "total_ms",
            "bulk_bytes", "bulk_bytes_per_s", "pages_total", "pages_zero"} <= set(result)
    assert set(result["downtime_us"]) == {"total", "pause", "send", "load", "resume"}
    assert {"total", "remote", "minor"} <= set(result["faults"])
    assert PERCENTILES <= set(result["fault_us"])
    assert PERCENTILES | {"source"} <= set(result["guest_stall_us"])
    assert {"hit", "late", "wasted"} <= set(result["prefetch"])
    assert result["integrity"]["pages_checked"] > 0
    assert result["integrity"]["pages_bad"] == 0
    assert result["memory_bytes"] == 32 << 20
    for rss in (result["rss_bytes"]["source"], result["rss_bytes"]["destination"]):
        assert 0 < rss
        if not harness.sanitizer():
            assert rss <= (64 << 20) + (32 << 20) // 1000


@needs_kvm
def test_bench_writes_a_report_that_needs_nothing_else(tmp_path):
    report = tmp_path / "report.html"
    done = bench("--report", report)
    assert done.returncode == 0, done.stderr
    html = report.read_text()
    assert "<svg" in html and "downtime" in html.lower()
    assert not re.search(r"""(src|href)\s*=\s*["']https?:""", html)


@needs_kvm
def test_bench_leaves_no_directory_behind():
    before = set(os.listdir("/tmp"))
    done = bench("--json", "--backend", "anon")
    assert done.returncode == 0, done.stderr
    assert not [name for name in set(os.listdir("/tmp")) - before if "postcopy" in name
                and not name.startswith("postcopyd-test-")]


def test_bench_on_guest_memfd_works_or_names_what_is_missing():
    done = bench("--backend", "guest_memfd", "--json")
    if done.returncode == 0:
        assert json.loads(done.stdout)["integrity"]["pages_bad"] == 0
        return
    assert done.returncode == 2
    assert "guest_memfd" in done.stderr


@pytest.mark.parametrize("arguments, named", [
    ((), "usage"), (("explode",), "explode"), (("bench", "--backend", "paper"), "backend"),
    (("bench", "--memory", "much"), "memory"), (("bench", "--vcpus", "0"), "vcpus"),
    (("status",), "usage|ID|id"),
], ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else "")
def test_wrong_usage_is_named_with_status_2(arguments, named):
    done = run(*arguments)
    assert done.returncode == 2
    assert re.search(named, done.stderr)


def test_daemon_that_is_not_there_is_named(tmp_path):
    done = run("list", "--control", tmp_path / "none.sock")
    assert done.returncode == 1
    assert str(tmp_path / "none.sock") in done.stderr


def test_unknown_migration_is_named(host):
    daemon = host.daemon("source")
    done = run("status", "nobody", "--control", daemon.control_path)
    assert done.returncode == 1
    assert "nobody" in done.stderr


def test_token_is_read_from_a_file_and_the_migration_listed(host):
    daemon = host.daemon("source")
    token = host.dir / "token"
    token.write_text(TOKEN + "\n")
    done = run("prepare", "vm1", "--role", "source", "--token-file", token,
               "--control", daemon.control_path)
    assert done.returncode == 0, done.stderr
    assert "vm1" in run("list", "--control", daemon.control_path).stdout
