# SPDX-License-Identifier: Apache-2.0
"""postcopyctl as a person or a script calls it: what it prints and how it ends."""
import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess

import pytest

import harness
import pyvmm
import test_recover
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


def child(parent, side):
    """The pid of its postcopyd of that side."""
    for pid in pathlib.Path("/proc/%d/task/%d/children" % (parent, parent)).read_text().split():
        if "%s.control" % side in pathlib.Path("/proc/%s/cmdline" % pid).read_text():
            return int(pid)
    raise harness.Failure("no postcopyd is a %s" % side)


@needs_kvm
def test_bench_says_what_its_daemon_died_of(host):
    pid, terminal = pty.fork()
    if not pid:
        # In postcopy for a second: who touches nothing has no faults to wait for.
        os.execv(CTL, [CTL, "bench", "--memory", "32M", "--workload", "idle",
                       "--idle-faults", "100000"])
    host.later(lambda: os.close(terminal))
    read_until(terminal, b"0 %")
    os.kill(child(pid, "destination"), signal.SIGKILL)
    read_until(terminal, b"the destination's postcopyd was killed by signal 9")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


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
    assert 0 < result["faults"]["after_switchover"] == result["faults"]["remote"]
    assert 0 < result["bytes_moved"] <= 2 * result["memory_bytes"]
    # Between the fewest that can do it and all that the guest has.
    assert 0 < result["pages_touched"] <= result["integrity"]["pages_checked"]
    # The guest stood still for the downtime, and not for longer than it all took.
    assert result["steady_accesses_per_s"] > 0
    assert 0 < result["longest_gap_us"] <= result["total_ms"] * 1000 + 1000
    # It is counted from the call that starts it on, which takes its time on a busy host.
    assert result["work_lost_ms"] <= result["total_ms"] * 1.1 + 1000
    assert "warm" not in result
    parts = result["work_lost_parts_ms"]
    assert abs(sum(parts.values()) - result["work_lost_ms"]) < 0.01
    for phase, causes in (result["work_lost_causes_ms"] or {}).items():
        assert abs(sum(causes.values()) - parts[phase]) < 0.01
    assert result["cpu_s_per_gib"]["source"] > 0 and result["cpu_s_per_gib"]["destination"] > 0
    assert result["cpu_s_per_gib"]["floor"] is None
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
    assert "What the guest got done" in html and "postcopy: the guest runs here" in html
    assert not re.search(r"""(src|href)\s*=\s*["']https?:""", html)


@needs_kvm
def test_bench_without_ebpf_has_the_daemon_s_stalls():
    result = json.loads(bench("--json", "--trace", "off").stdout)
    assert result["trace"] == "off"
    assert result["guest_stall_us"]["source"] == "daemon"
    assert result["stall_joined_us"] is None


@needs_kvm
def test_bench_of_an_idle_guest_tells_of_no_work():
    done = bench("--json", "--workload", "idle")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["work_lost_ms"] is None and result["longest_gap_us"] is None
    assert result["pages_touched"] == 0


@needs_kvm
@pytest.mark.parametrize("more", [(), ("--qdisc", "prio"), ("--rtt-us", 20000),
                                  ("--cross-mbit", 200)], ids=str)
def test_bench_by_a_link(more):
    done = bench("--json", "--vcpus", 1, "--link-mbit", 400, *more)
    if done.returncode == 2 and "link:" in done.stderr:
        pytest.skip("no such link here: %s" % done.stderr.strip())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    link = result["link"]
    assert link["mbit"] == 400 and link["rtt_us"] == (more[1] if "--rtt-us" in more else 0)
    # All of it went by the link, and not faster than the link is; what is let through at once aside.
    assert result["bytes_moved"] * 8 <= 400e6 * result["total_ms"] / 1000 + (64 << 10) * 8
    # A stranger's share is in it, too, which is half of the link at least.
    if "--cross-mbit" in more:
        assert link["used"] * 400e6 * result["total_ms"] / 1000 > 1.2 * result["bytes_moved"] * 8
    assert 0 < link["used"] <= 1.05
    if link["rtt_us"]:
        assert result["fault_us"]["p50"] >= link["rtt_us"]


@needs_kvm
def test_bench_of_guests_side_by_side():
    done = bench("--json", "--vcpus", 1, "--memory", "64M", "--beside", 2)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["beside"]["guests"] == 2
    assert result["beside"]["fault_p99_us"] > 0 and result["beside"]["total_ms"] > 0


@needs_kvm
def test_bench_with_several_fault_threads(tmp_path):
    done = bench("--json", "--fault-threads", 3, "--keep-logs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fault_threads"] == 3
    assert any("3 userfaultfds watch" in log.read_text() for log in tmp_path.iterdir())


def test_bench_refuses_fault_threads_of_a_qemu():
    done = bench("--vmm", "qemu", "--fault-threads", 2)
    assert done.returncode == 2 and "--fault-threads" in done.stderr


@needs_kvm
def test_bench_by_a_warm_migration(tmp_path):
    report = tmp_path / "report.html"
    done = bench("--json", "--warm-rounds", 2, "--dirty-rate", "64M", "--report", report)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    warm = result["warm"]
    assert warm["policy"]["max_rounds"] == 2 and warm["refused"] == ""
    assert warm["rounds"] == 2 and warm["warm_ms"] > 0
    assert warm["dirty_pages_at_switchover"] < result["pages_total"] / 2
    # Most of what it touches is there before it touches it.
    assert result["faults"]["after_switchover"] < warm["dirty_pages_at_switchover"] + 64
    assert result["integrity"]["pages_bad"] == 0
    assert "warm: memory is copied while the guest runs" in report.read_text()


@needs_kvm
def test_bench_says_why_it_is_not_warm():
    done = bench("--json", "--warm", "--dirty-log", "none")
    assert done.returncode == 0, done.stderr
    warm = json.loads(done.stdout)["warm"]
    assert "none" in warm["refused"] and warm["rounds"] == 0


def test_bench_refuses_idle_faults_of_a_warm_migration():
    done = bench("--warm", "--idle-faults", 10)
    assert done.returncode == 2 and "--idle-faults" in done.stderr


def test_bench_refuses_a_round_trip_without_a_link():
    done = bench("--rtt-us", 100)
    assert done.returncode == 2 and "--link-mbit" in done.stderr


@needs_kvm
def test_bench_leaves_no_directory_behind():
    before = set(os.listdir("/tmp"))
    done = bench("--json", "--backend", "anon")
    assert done.returncode == 0, done.stderr
    left = set(os.listdir("/tmp")) - before
    # Those of other benches that run beside it go with them.
    harness.eventually(lambda: not [name for name in left & set(os.listdir("/tmp"))
                                    if name.startswith("postcopy-bench-")],
                       "no directory of the bench's is left")


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
    done = run("list", "--control", tmp_path / "none.sock", "--json")
    assert done.returncode == 3
    assert str(tmp_path / "none.sock") in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "UNAVAILABLE"


def test_unknown_migration_is_named(host):
    daemon = host.daemon("source")
    done = run("status", "nobody", "--control", daemon.control_path, "--json")
    assert done.returncode == 4
    assert "nobody" in done.stderr
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["reason"]) == ("NOT_FOUND", "MIGRATION_NOT_FOUND")
    assert "nobody" in error["message"]


def test_token_is_read_from_a_file_and_the_migration_listed(host):
    daemon = host.daemon("source")
    token = host.dir / "token"
    token.write_text(TOKEN + "\n")
    done = run("prepare", "vm1", "--role", "source", "--token-file", token,
               "--control", daemon.control_path)
    assert done.returncode == 0, done.stderr
    assert "vm1" in run("list", "--control", daemon.control_path).stdout


@pytest.mark.parametrize("option", ["--token", "--token-file"])
def test_token_of_zeroes_is_refused_with_what_to_do(host, option):
    """Everybody's guess was taken for a secret."""
    daemon = host.daemon("source")
    token = host.dir / "token"
    token.write_text("0" * 64 + "\n")
    done = run("prepare", "vm1", "--role", "source", "--control", daemon.control_path,
               option, token if option == "--token-file" else "0" * 64)
    assert done.returncode != 0
    assert "all zero" in done.stderr and "openssl rand -hex 32" in done.stderr
    assert not daemon.call("List").get("migrations")


def control_port(daemon):
    return int(re.search(r"gRPC over TCP on port (\d+)", daemon.log()).group(1))


@pytest.fixture
def remote(host, pki):
    """A daemon that may be driven over TCP, and the options that do so."""
    daemon = host.daemon("source", extra=["--control-listen", "127.0.0.1:0",
                                          "--control-allow", "postcopy:controller"])
    return daemon, ["--control", "localhost:%d" % control_port(daemon), "--ca", pki.controller.ca]


def by(identity):
    return ["--cert", identity.cert, "--key", identity.key]


def test_over_tcp_with_a_certificate(remote, pki):
    daemon, whose = remote
    daemon.prepare_source("vm1")
    done = run(*whose, *by(pki.controller), "--server-name", "postcopy:source", "list", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["migrations"][0]["id"] == "vm1"


@pytest.mark.parametrize("who, server_name, named", [
    ("stranger", "postcopy:source", "does not allow the name of this host .control-allow"),
    ("forged", "postcopy:source", "certificate|control-allow"),
    ("controller", "postcopy:destination", "postcopy:source"),
])
def test_over_tcp_with_a_wrong_certificate(remote, pki, who, server_name, named):
    _, whose = remote
    done = run("list", *whose, *by(getattr(pki, who)), "--server-name", server_name)
    assert done.returncode == 3
    assert re.search(named, done.stderr)


def test_over_tcp_a_certificate_is_asked_for(remote):
    _, whose = remote
    done = run("list", *whose)
    assert done.returncode == 2
    assert "--cert" in done.stderr


def test_daemon_that_hangs_is_not_waited_for_for_ever(host):
    daemon = host.daemon("source")
    os.kill(daemon.pid, signal.SIGSTOP)
    host.later(lambda: os.kill(daemon.pid, signal.SIGCONT))
    done = run("list", "--control", daemon.control_path, "--timeout", 1)
    assert done.returncode == 3
    assert "in time" in done.stderr


def test_what_the_state_does_not_allow_is_status_2(host):
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    done = run("start", "vm1", "--control", daemon.control_path, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "FAILED_PRECONDITION"


def test_limits_are_told_back(host):
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", "127.0.0.1:9", streams=2)
    done = run("limits", "vm1", "--control", daemon.control_path, "--json", "--bandwidth", "100M",
               "--streams", 3, "--bulk", "off")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["limits"] == {
        "bandwidth_bytes_per_s": 100 << 20, "streams": 3, "bulk": False, "prefetch": True,
        "weight": 100}


def test_list_has_all_pages_and_only_the_states_asked_for(host):
    daemon = host.daemon("source")
    with daemon.control() as control:
        for number in range(1005):
            control.call("Prepare", id="vm%d" % number, role="source", token=TOKEN)
        control.call("Cancel", id="vm7")
    whose = ("--control", daemon.control_path, "--json")
    assert len(json.loads(run("list", *whose).stdout)["migrations"]) == 1005
    ended = json.loads(run("list", *whose, "--state", "cancelled,failed").stdout)["migrations"]
    assert [(m["id"], m["state"]) for m in ended] == [("vm7", "cancelled")]
    done = run("list", *whose, "--state", "cancelled,lost")
    assert done.returncode == 2 and "lost" in done.stderr


def test_delete_and_which_half_is_meant(host):
    daemon = host.daemon("destination")
    daemon.prepare_source("vm1")
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    whose = ("vm1", "--control", daemon.control_path, "--json")
    done = run("status", *whose)
    assert done.returncode == 2 and "both halves" in done.stderr
    assert json.loads(run("status", *whose, "--role", "source").stdout)["role"] == "source"
    assert json.loads(run("cancel", *whose, "--role", "source").stdout)["state"] == "cancelled"
    # One is left that it can be.
    assert json.loads(run("status", *whose).stdout)["role"] == "destination"
    assert json.loads(run("delete", *whose).stdout) == {"deleted": 1}
    done = run("delete", *whose)
    assert done.returncode == 2 and "has not ended" in done.stderr
    run("cancel", *whose)
    assert run("delete", "vm1", "--control", daemon.control_path).stdout == ""
    assert run("delete", *whose).returncode == 4


def test_poison_wants_its_bytes_confirmed(host):
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    done = run("poison", "vm1", "--control", daemon.control_path)
    assert done.returncode == 2 and "--confirm" in done.stderr


@pytest.mark.skipif(pyvmm.can_userfault() is not None, reason=str(pyvmm.can_userfault()))
def test_what_is_missing_is_told_and_fetched_from_another_address(host):
    pair = test_recover.Pair(host)
    pair.run()
    pair.proxy.refuse(True)
    pair.destination.wait_for_state("vm1", "paused")
    whose = ("vm1", "--control", pair.destination.control_path)
    missing = json.loads(run("missing", *whose, "--json").stdout)
    size = test_recover.SIZE - pyvmm.PAGE
    assert missing["missing_bytes"] == size == sum(r["size_bytes"] for r in missing["ranges"])
    assert "%d bytes are missing" % size in run("missing", *whose).stdout
    done = run("poison", *whose, "--confirm", pyvmm.PAGE, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["reason"] == "CONFIRMATION"
    done = run("recover", *whose, "--source", pair.source.address)
    assert done.returncode == 0, done.stderr
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.finish()


def test_check_of_the_daemons_host_says_the_same_as_here(host):
    daemon = host.daemon("source")
    here, there = run("check", "--json"), run("check", "--daemon", "--json", "--control",
                                              daemon.control_path)
    assert there.returncode == here.returncode, there.stderr
    rows = {row["name"]: row["ok"] for row in json.loads(there.stdout)["checks"]}
    assert {row["name"]: row["ok"] for row in json.loads(here.stdout)["checks"]}.items() >= {
        name: rows[name] for name in ("memfd", "guest_memfd") if name in rows}.items()
    assert run("check", "--daemon", "--control", daemon.control_path).stdout.strip()


def test_interrupt_ends_a_watch_and_not_the_migration(host):
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    watch = subprocess.Popen([CTL, "watch", "vm1", "--control", daemon.control_path],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert "vm1 prepared" in watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    assert watch.wait(harness.DEADLINE_S) == 130
    watch.stdout.close()
    assert daemon.state("vm1") == "prepared"


def test_watch_ends_with_the_migration(host):
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    watch = subprocess.Popen([CTL, "watch", "vm1", "--json", "--control", daemon.control_path],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert json.loads(watch.stdout.readline())["state"] == "prepared"
    daemon.call("Cancel", id="vm1")
    lines = watch.stdout.read().splitlines()
    assert watch.wait(harness.DEADLINE_S) == 1
    watch.stdout.close()
    assert json.loads(lines[-1])["state"] == "cancelled"


def test_watch_whose_reader_goes_away_ends(host):
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    watch = subprocess.Popen([CTL, "watch", "vm1", "--control", daemon.control_path],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True)
    assert watch.stdout.readline()
    watch.stdout.close()
    daemon.call("Cancel", id="vm1")
    assert watch.wait(harness.DEADLINE_S) == 1


def test_top_without_a_terminal_is_one_snapshot(host):
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    done = run("top", "--control", daemon.control_path)
    assert done.returncode == 0, done.stderr
    assert "1 running, 0 ended" in done.stdout and re.search("^vm1 .*prepared", done.stdout, re.M)
    assert "\033" not in done.stdout


def read_until(terminal, text):
    said = b""
    while text not in said:
        ready, _, _ = select.select([terminal], [], [], harness.DEADLINE_S)
        assert ready, said
        try:
            said += os.read(terminal, 65536)
        except OSError:
            pytest.fail("it ended before \"%s\": %s" % (text, said))
    return said


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
def test_top_on_a_terminal_is_left_by_a_key(host, key):
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    pid, terminal = pty.fork()
    if not pid:
        os.execv(CTL, [CTL, "top", "--control", daemon.control_path])
    host.later(lambda: os.close(terminal))
    assert b"\033[?1049h" in read_until(terminal, b"vm1")
    daemon.call("Cancel", id="vm1")
    read_until(terminal, b"cancelled")
    os.write(terminal, key)
    read_until(terminal, b"\033[?1049l")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
