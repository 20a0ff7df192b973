# SPDX-License-Identifier: Apache-2.0
"""/metrics: what it says, that it is right, and that no client of it can do harm."""
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.parse

import pytest

import harness
import pyvmm
import stream
import test_recover
from test_migrate import Pair, migrate

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client import parser as classic_parser  # noqa: E402
from prometheus_client.openmetrics import parser as strict_parser  # noqa: E402

DOCS = pathlib.Path(__file__).parents[2] / "docs"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CLASSIC = "text/plain; version=0.0.4; charset=utf-8"
# As Prometheus asks.
ACCEPT = ("application/openmetrics-text;version=1.0.0,"
          "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
METRICS = ("--metrics-listen", "127.0.0.1:0")
ENDED_MAX = 32

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                               reason="/dev/kvm can't be opened: no vCPUs here")
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="there is no promtool")
needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"),
                                      reason="there is no prometheus")


def port(daemon):
    daemon.wait_for_log("metrics on port")
    # Of its last process.
    return int(re.findall(r"metrics on port (\d+)", daemon.log())[-1])


def get(daemon, accept=ACCEPT, context=None, path="/metrics", method="GET"):
    """(status, content type, text)"""
    kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
    options = {"context": context} if context else {}
    connection = kind("127.0.0.1", port(daemon), timeout=harness.DEADLINE_S, **options)
    try:
        connection.request(method, path, headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()
    finally:
        connection.close()


def families(daemon):
    status, kind, text = get(daemon)
    assert (status, kind) == (200, OPENMETRICS)
    return {family.name: family for family in strict_parser.text_string_to_metric_families(text)}


def samples(daemon):
    """{(name, labels): (type, value)}"""
    return {(sample.name, tuple(sorted(sample.labels.items()))): (family.type, sample.value)
            for family in families(daemon).values() for sample in family.samples}


def value(found, name, **labels):
    return found[name, tuple(sorted(labels.items()))][1]


@pytest.fixture
def daemon(host):
    return host.daemon("source", allow=["postcopy:destination"], extra=METRICS)


def test_both_formats_say_the_same(daemon):
    strict = families(daemon)
    status, kind, text = get(daemon, accept=None)
    assert (status, kind) == (200, CLASSIC)
    classic = {sample.name for family in classic_parser.text_string_to_metric_families(text)
               for sample in family.samples}
    assert classic == {sample.name for family in strict.values() for sample in family.samples}
    for name, family in strict.items():
        assert family.documentation
        assert name.startswith(("postcopyd_", "process_"))
        assert not family.unit or name.endswith("_" + family.unit)


@needs_promtool
def test_promtool_finds_nothing_to_complain_of(daemon):
    done = subprocess.run(["promtool", "check", "metrics"], input=get(daemon, accept=None)[2],
                          capture_output=True, text=True, timeout=harness.DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("method, path, status", [
    ("HEAD", "/metrics", 200), ("GET", "/", 404), ("GET", "/metrics/", 404),
    ("GET", "/metrics?x=1", 200), ("POST", "/metrics", 405), ("BREW", "/metrics", 405)])
def test_there_is_one_page_and_it_is_read_only(daemon, method, path, status):
    assert get(daemon, method=method, path=path)[0] == status


def cumulative(found):
    return {key: number for key, (kind, number) in found.items()
            if kind in ("counter", "histogram")}


def check_never_back(before, after):
    for key, number in cumulative(before).items():
        assert after[key][1] >= number, key


@needs_kvm
def test_counts_are_right_and_never_go_back(host):
    pair = Pair(host, extra=METRICS)
    seen = [samples(pair.source), samples(pair.destination)]
    total = {"pages_present": 0, "remote": 0, "bytes": 0}
    for number, name in enumerate(("vm1", "vm2"), 1):
        vmms = pair.attach(name, memory="32M")
        pair.start(name)
        migration = pair.finish(name, *vmms)
        source, destination = samples(pair.source), samples(pair.destination)
        check_never_back(seen[0], source)
        check_never_back(seen[1], destination)
        seen = [source, destination]
        total["pages_present"] += migration["pages_present"]
        total["remote"] += migration["faults"]["remote"]
        total["bytes"] += pair.source.call("Get", id=name)["served"]["bytes"]
        assert value(destination, "postcopyd_migrations_total", role="destination",
                     result="complete") == number
        assert value(source, "postcopyd_migrations_total", role="source",
                     result="complete") == number
        assert value(destination, "postcopyd_downtime_seconds_count", part="total") == number
        assert sum(number for (name, _), (_, number) in destination.items()
                   if name == "postcopyd_pages_total") == total["pages_present"]
        assert value(destination, "postcopyd_faults_total", kind="remote") == total["remote"]
        for phase in "total", "queue", "request", "answer", "fill", "map":
            assert value(destination, "postcopyd_fault_duration_seconds_count",
                         phase=phase) == total["remote"]
        assert value(source, "postcopyd_served_bytes_total") == total["bytes"]
        assert value(destination, "postcopyd_pages_missing") == 0
    forget(pair)
    check_never_back(seen[0], samples(pair.source))
    check_never_back(seen[1], samples(pair.destination))


@pytest.mark.skipif(pyvmm.can_userfault() is not None, reason=str(pyvmm.can_userfault()))
def test_guesses_that_were_wasted_are_told_once(host):
    """When it has ended; also before it is forgotten, and not again then."""
    pages = 1024
    content = pyvmm.guest_content(pages * 4096)
    source = stream.FakeSource(host.pki.source, content)
    host.later(source.close)
    destination = host.daemon("destination", allow=["postcopy:source"], extra=METRICS)
    destination.prepare_destination("vm1", source.address, map="lazy", bulk=False)
    vmm = pyvmm.DestinationVmm(destination, "vm1", len(content))
    host.later(vmm.close)

    def told():
        return value(samples(destination), "postcopyd_prefetch_units_total", result="wasted")

    def forgotten():
        try:
            return destination.call("Delete", id="vm1")
        except harness.ControlError:
            return None  # in use still
    destination.call("Start", id="vm1")
    assert vmm.load() == source.vmstate
    thread, _ = vmm.touch(pages // 2)
    thread.join(harness.DEADLINE_S)
    assert told() == 0
    destination.call("SetLimits", id="vm1", bulk=True)
    vmm.expect(pyvmm.COMPLETE)
    wasted = destination.wait_for_state("vm1", "complete")["prefetch"]["wasted"]
    assert wasted > 0
    harness.eventually(lambda: told() == wasted, "guesses that were wasted")
    vmm.close()
    harness.eventually(forgotten, "its being forgotten")
    assert told() == wasted


def test_pauses_are_counted_however_short(host):
    """The gauge of those that are paused does not know them once they are over."""
    pair = test_recover.Pair(host, extra=METRICS)

    def pauses():
        return value(samples(pair.destination), "postcopyd_pauses_total")
    pair.run()
    assert pauses() == 0
    for number in 1, 2:
        pair.proxy.refuse(True)
        thread, _ = pair.destination_vmm.touch(number)
        pair.destination.wait_for_state("vm1", "paused")
        pair.proxy.refuse(False)
        pair.destination.wait_for_state("vm1", "postcopy")
        thread.join(harness.DEADLINE_S)
        assert pauses() >= number
    pair.finish()


def forget(pair):
    """So many others end that the daemons forget the first ones."""
    for number in range(ENDED_MAX + 3):
        name = "other%d" % number
        pair.source.prepare_source(name)
        pair.source.call("Cancel", id=name)
        pair.destination.prepare_destination(name, pair.source.address)
        pair.destination.call("Cancel", id=name)
    for daemon in pair.source, pair.destination:
        with pytest.raises(harness.ControlError, match="NOT_FOUND"):
            daemon.state("vm1")


@needs_kvm
def test_series_are_known_beforehand(host):
    """Nothing that anybody names becomes a label. (Methods and codes are counted as they come.)"""
    pair = Pair(host, extra=METRICS)
    before = samples(pair.destination)
    migrate(pair)
    after = samples(pair.destination)
    calls = {key for key in after if key[0] == "postcopyd_control_calls_total"}
    assert set(after) - calls == set(before) - calls
    assert not [key for key in after if "vm1" in str(key)]


def client_context(host, identity):
    context = ssl.create_default_context(cafile=host.pki.ca)
    context.check_hostname = False
    if identity:
        context.load_cert_chain(identity.cert, identity.key)
    return context


def test_tls_wants_a_certificate_of_the_ca(host):
    daemon = host.daemon("source", extra=(*METRICS, "--metrics-tls", "yes"))
    status, _, text = get(daemon, context=client_context(host, host.pki.stranger))
    assert status == 200 and "postcopyd_build_info" in text
    for identity in None, host.pki.forged, host.pki.expired:
        try:
            status, _, text = get(daemon, context=client_context(host, identity))
        except (ssl.SSLError, ConnectionError, http.client.HTTPException):
            continue
        assert status == 403 and "postcopyd_" not in text
    old = client_context(host, host.pki.stranger)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        get(daemon, context=old)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        get(daemon)


GARBAGE = [b"\0" * 100, b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n" * 5000,
           b"GET /metrics HTTP/9.9\r\n\r\n", b"GET " + b"/" * 100000 + b" HTTP/1.1\r\n\r\n",
           b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 20000,
           b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n" + b"z" * 65536,
           b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"]


def test_garbage_is_survived(daemon):
    before = daemon.resources()
    for garbage in GARBAGE * 20:
        with socket.create_connection(("127.0.0.1", port(daemon)),
                                      timeout=harness.DEADLINE_S) as connection:
            try:
                connection.sendall(garbage)
            except ConnectionError:
                pass  # it has heard enough
    harness.eventually(lambda: daemon.resources()["fds"] <= before["fds"], "descriptors are back")
    assert get(daemon)[0] == 200


def test_many_connections_leave_nothing_behind(daemon):
    before = daemon.resources()
    for _ in range(1000):
        socket.create_connection(("127.0.0.1", port(daemon)), timeout=harness.DEADLINE_S).close()
    for _ in range(100):
        assert get(daemon)[0] == 200
    harness.eventually(lambda: daemon.resources()["fds"] <= before["fds"], "descriptors are back")
    if not harness.sanitizer():
        assert daemon.resources()["rss_kib"] <= before["rss_kib"] + 8192


def test_more_connections_than_may_be_give_way_when_they_go(daemon):
    for _ in range(30):
        connections = [socket.create_connection(("127.0.0.1", port(daemon)),
                                                timeout=harness.DEADLINE_S) for _ in range(100)]
        for connection in connections:
            connection.close()
        assert get(daemon)[0] == 200


def test_silent_and_slow_clients_hold_up_themselves_only(daemon):
    """As many as may be connected, and more: some silent, some a byte at a time."""
    slow = [socket.create_connection(("127.0.0.1", port(daemon)), timeout=harness.DEADLINE_S)
            for _ in range(100)]
    try:
        # The daemon does its own work, whatever they do.
        with daemon.control() as control:
            for _ in range(100):
                control.call("List")
        alive = slow[:50]
        deadline = time.monotonic() + 4 * harness.DEADLINE_S
        # They are dropped one after the other, also those that say something now and then.
        while alive and time.monotonic() < deadline:
            for connection in list(alive):
                try:
                    connection.sendall(b"G")
                    connection.settimeout(0.01)
                    if not connection.recv(100):
                        alive.remove(connection)
                except socket.timeout:
                    pass
                except OSError:
                    alive.remove(connection)
        assert not alive
    finally:
        for connection in slow:
            connection.close()
    assert get(daemon)[0] == 200


def test_a_reader_that_stops_reading_blocks_nobody(daemon):
    """Small buffers, so that the page does not fit."""
    stuck = []
    for _ in range(20):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", port(daemon)))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        stuck.append(connection)
    for _ in range(10):
        assert get(daemon)[0] == 200
    daemon.call("List")
    for connection in stuck:
        connection.close()


def test_address_in_use_is_told(host, daemon):
    with pytest.raises(harness.Failure, match="metrics address.*in use"):
        host.daemon("source", extra=("--metrics-listen", "127.0.0.1:%d" % port(daemon)))


def scraped_types(daemon):
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", get(daemon, accept=None)[2], re.M))


def documented():
    """{name: (type, labels)}"""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*)\|", (DOCS / "metrics.md").read_text(), re.M)
    return {name: (kind, {label for label in re.split(r"[ ,]+", labels) if label})
            for name, kind, labels in rows}


def test_each_metric_is_documented(daemon):
    types = scraped_types(daemon)
    documents = documented()
    assert set(types) == set(documents)
    assert {name: documents[name][0] for name in types} == types
    for family in classic_parser.text_string_to_metric_families(get(daemon, accept=None)[2]):
        for sample in family.samples:
            name = sample.name if sample.name in documents else family.name
            assert set(sample.labels) - {"le"} == documents[name][1], sample


def known_names(types):
    return {name + suffix for name, kind in types.items()
            for suffix in (["_bucket", "_sum", "_count"] if kind == "histogram" else [""])}


def names_in(text):
    return set(re.findall(r"\b(?:postcopyd|process)_\w+", text))


def dashboard():
    return json.loads((DOCS / "grafana/postcopyd.json").read_text())


def expressions():
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def test_dashboard_and_alerts_name_what_there_is(daemon):
    known = known_names(scraped_types(daemon))
    rules = (DOCS / "alerts/postcopyd.rules.yml").read_text()
    for text in [*re.findall(r"expr: (.*?)\n *(?:for|labels):", rules, re.S), *expressions()]:
        assert names_in(text) <= known
        assert names_in(text) or "up{" in text
    blocks = re.findall(r"(?:^    \S.*\n)+", (DOCS / "metrics.md").read_text(), re.M)
    assert names_in("".join(blocks)) <= known


def test_dashboard_shows_what_a_host_has_left():
    shown = names_in(" ".join(expressions()))
    assert {"postcopyd_" + name for name in (
        "memory_available_bytes", "memory_promised_bytes", "admissions_refused_total",
        "fd_store_entries", "certificate_expiry_timestamp_seconds", "fills_failed_total",
        "pauses_total", "refused_total")} <= shown


def test_dashboard_is_well_made():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [(x, y) for panel in panels for place in [panel["gridPos"]]
             for x in range(place["x"], place["x"] + place["w"])
             for y in range(place["y"], place["y"] + place["h"])]
    assert len(set(cells)) == len(cells)
    assert all(0 <= x < 24 for x, _ in cells)
    assert all(panel["type"] == "row" or panel["description"] for panel in panels)


def promtool(*arguments):
    # It plays hours of metrics: on a busy host that takes a while.
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True,
                          timeout=10 * harness.DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then():
    assert "SUCCESS" in promtool("check", "rules", DOCS / "alerts/postcopyd.rules.yml")
    promtool("test", "rules", DOCS / "alerts/postcopyd.test.yml")
    rules = set(re.findall(r"alert: (\w+)", (DOCS / "alerts/postcopyd.rules.yml").read_text()))
    tests = set(re.findall(r"alertname=\"(\w+)\"", (DOCS / "alerts/postcopyd.test.yml").read_text()))
    assert rules == tests


@needs_promtool
def test_dashboard_speaks_promql(tmp_path):
    questions = [expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
                 for expression in expressions()]
    rules = tmp_path / "questions.yml"
    rules.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": [
        {"record": "panel:%d" % number, "expr": question}
        for number, question in enumerate(questions)]}]}))
    assert "%d rules found" % len(questions) in promtool("check", "rules", rules)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Prometheus(harness.Process):
    """The real one, with our rules, asked by its HTTP API."""

    def __init__(self, directory, targets):
        self.address = "127.0.0.1:%d" % free_port()
        config = directory / "prometheus.json"
        config.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(DOCS / "alerts/postcopyd.rules.yml")],
            "scrape_configs": [{"job_name": "postcopyd",
                                "static_configs": [{"targets": targets}]}]}))
        super().__init__("prometheus", [
            "prometheus", "--config.file=%s" % config, "--storage.tsdb.path=%s" % (directory / "tsdb"),
            "--web.listen-address=" + self.address], directory / "prometheus.log")

    def query(self, expression):
        """Numbers by instance and job; empty while there is no answer."""
        connection = http.client.HTTPConnection(self.address, timeout=harness.DEADLINE_S)
        try:
            connection.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
            answer = json.loads(connection.getresponse().read())
        except (ConnectionError, ValueError):
            return []
        finally:
            connection.close()
        assert answer["status"] == "success", answer
        return [float(result["value"][1]) for result in answer["data"]["result"]]


@needs_kvm
@needs_prometheus
def test_prometheus_scrapes_a_migration(host, tmp_path):
    pair = Pair(host, extra=METRICS)
    prometheus = Prometheus(tmp_path, ["127.0.0.1:%d" % port(daemon)
                                       for daemon in (pair.source, pair.destination)])
    host.later(prometheus.kill)
    harness.eventually(lambda: prometheus.query("up") == [1, 1], "Prometheus has scraped both")
    migration = migrate(pair)
    assert migration["faults"]["remote"] > 0
    faults = 'sum(postcopyd_fault_duration_seconds_count{phase="total"})'
    harness.eventually(lambda: prometheus.query(faults) == [migration["faults"]["remote"]],
                       "all faults are scraped")
    quantile = prometheus.query("histogram_quantile(0.99, sum by (le) "
                                "(postcopyd_fault_duration_seconds_bucket{phase=\"total\"}))")
    # The bucket that the p99 falls in ends at most half as high again.
    assert 0 < quantile[0] * 1e6 < 1.6 * migration["fault_us"]["max"]
    assert prometheus.query('count(postcopyd_build_info)') == [2]
