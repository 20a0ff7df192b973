# SPDX-License-Identifier: Apache-2.0
"""The report's page in a real browser: it is drawn, in light and dark, without complaint, also
where it has as much to show as it can."""
import collections
import json
import math
import random
import shutil
import struct
import subprocess
import zlib

import pytest

import harness

GIB = 1 << 30
# What a daemon keeps at most (migrate/migrate.h, fault/phases.h, fault/arrival.h).
TIMELINE_MAX, DOTS_MAX, SLOW_MAX, CELLS_MAX = 1024, 4096, 64, 4096
PHASES = ["queue", "request", "answer", "fill", "map", "entry", "wakeup"]
PAGE_BYTES_MAX = 3 << 20
WIDTH, HEIGHT = 900, 1500
RENDER_MAX_S = 30
# --a of the page's style: the bars' and the timeline's.
BLUE = {"light": (0x2f, 0x6f, 0xde), "dark": (0x5b, 0x93, 0xf5)}
SCHEMES = {"light": "1", "dark": "0"}

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(not BROWSER, reason="there is no chromium")


def latency(rng, p50):
    return {"count": rng.randrange(10 ** 6), "p50": p50, "p90": p50 * 1.4, "p99": p50 * 6.1,
            "p999": p50 * 20.7, "max": p50 * 90.3}


def histogram(rng, p50, n):
    """As the daemon's: 16 buckets to each power of two."""
    buckets = collections.Counter()
    for _ in range(n):
        us = rng.lognormvariate(math.log(p50), 0.7)
        step = 2 ** math.floor(math.log2(us)) / 16
        buckets[math.ceil(us / step) * step] += 1
    return sorted([upper, count] for upper, count in buckets.items())


def dot(rng, total_ms):
    phases = [rng.expovariate(1 / mean) for mean in (0.3, 12, 60, 7, 1, 9, 20)]
    return {"at_ms": rng.random() * total_ms, "us": sum(phases),
            "address": rng.randrange(1 << 47) & ~0xfff, "tid": rng.randrange(1, 1 << 22),
            "phase": PHASES[phases.index(max(phases))], "phases_us": phases}


def synthetic_report(memory_bytes, seed=1):
    """A migration at 1 GiB/s; every series as long as it can be from some GiB on."""
    rng = random.Random(seed)
    pages, total_ms = memory_bytes // 4096, memory_bytes / GIB * 1000
    points = min(TIMELINE_MAX, int(total_ms / 10))
    dots = [dot(rng, total_ms) for _ in range(min(DOTS_MAX, pages // 64))]
    slow = sorted(dots, key=lambda fault: -fault["us"])[:SLOW_MAX]
    cells = min(CELLS_MAX, pages // 64)
    return {
        "id": "vm-<b>&\"7\"", "state": "complete", "role": "destination", "reason": "",
        "memory_bytes": memory_bytes, "page_bytes": 4096, "backend": "memfd", "streams": 4,
        "tls": "TLSv1.3 TLS_AES_128_GCM_SHA256", "map": "eager", "total_ms": total_ms,
        "bulk_bytes": memory_bytes, "bulk_bytes_per_s": GIB, "pages_total": pages,
        "pages_zero": pages // 10, "reconnects": 1,
        "downtime_us": {"total": 2450, "pause": 350, "send": 1100, "load": 620, "resume": 380},
        "faults": {"total": 10 * len(dots), "remote": len(dots), "minor": 12, "coalesced": 3},
        "fault_us": latency(rng, 83), "fault_idle_us": latency(rng, 61),
        "fault_bulk_us": latency(rng, 92), "fault_phases_us": {
            name: latency(rng, p50)
            for name, p50 in zip(PHASES, (0.2, 11, 58, 6.2, 0.1, 7.9, 12))},
        "guest_stall_us": {**latency(rng, 99), "source": "tracepoint"},
        "prefetch": {"hit": 5, "late": 6, "wasted": 7}, "phases": PHASES,
        "timeline": [[total_ms * i / points, pages * i // points] for i in range(points + 1)],
        "fault_dots": [[fault["at_ms"], fault["us"], PHASES.index(fault["phase"])]
                       for fault in dots],
        "slow_faults": slow, "fault_histogram": histogram(rng, 83, 20000),
        "stall_histogram": histogram(rng, 99, 20000),
        "arrival": [[pages // cells, total_ms * rng.random(),
                     pages // cells if rng.random() < 0.1 else 0] for _ in range(cells)],
        "integrity": {"pages_checked": pages, "pages_bad": 0}}


def page_of(report):
    done = subprocess.run([harness.BUILD / "tests/integration/report-page"],
                          input=json.dumps(report).encode(), capture_output=True,
                          timeout=harness.DEADLINE_S)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


class Browser:
    def __init__(self, directory):
        self.directory = directory

    def run(self, page, *options, scheme="light"):
        """Loads a page of bytes. Returns what was printed, DOM or nothing, and what the page
        itself complained of."""
        path = self.directory / "page.html"
        path.write_bytes(page)
        done = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
             "--user-data-dir=%s" % (self.directory / "profile"), "--enable-logging=stderr",
             "--window-size=%d,%d" % (WIDTH, HEIGHT),
             "--blink-settings=preferredColorScheme=" + SCHEMES[scheme], *options,
             path.as_uri()], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=RENDER_MAX_S)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def dom(self, page):
        return self.run(page, "--dump-dom")

    def colours(self, page, scheme):
        """How often the screenshot has which colour."""
        picture = self.directory / (scheme + ".png")
        _, complaints = self.run(page, "--screenshot=%s" % picture, scheme=scheme)
        assert not complaints
        return png_colours(picture.read_bytes())


def unfilter(kind, line, above, step):
    """One line of a PNG picture as it was before it was made easier to compress."""
    line = bytearray(line)
    if kind == 2:
        return bytearray((a + b) & 0xff for a, b in zip(line, above))
    for i in range(len(line) if kind else 0):
        left = line[i - step] if i >= step else 0
        up, corner = above[i], above[i - step] if i >= step else 0
        if kind == 1:
            guess = left
        elif kind == 3:
            guess = (left + up) // 2
        else:
            p = left + up - corner
            guess = min((abs(p - left), 0, left), (abs(p - up), 1, up),
                        (abs(p - corner), 2, corner))[2]
        line[i] = (line[i] + guess) & 0xff
    return line


def png_colours(png):
    """Of 8-bit RGB or RGBA: {(r, g, b): how many pixels}"""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    data, at = b"", 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        content = png[at + 8:at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour_type = struct.unpack_from(">IIBB", content)
            assert (width, height, depth) == (WIDTH, HEIGHT, 8)
            step = {2: 3, 6: 4}[colour_type]
        elif kind == b"IDAT":
            data += content
        at += 12 + length
    data, stride = zlib.decompress(data), 1 + width * step
    colours, line = collections.Counter(), bytearray(width * step)
    for at in range(0, height * stride, stride):
        line = unfilter(data[at], data[at + 1:at + stride], line, step)
        colours.update(zip(line[0::step], line[1::step], line[2::step]))
    return colours


@pytest.fixture
def browser(tmp_path):
    return Browser(tmp_path)


@pytest.fixture(scope="module", params=[1, 64])
def page(request):
    return page_of(synthetic_report(request.param * GIB))


def test_page_is_small(page):
    assert len(page) < PAGE_BYTES_MAX


@needs_browser
def test_browser_takes_the_page_as_it_was_written(browser, page):
    dom, complaints = browser.dom(page)
    assert not complaints
    source = page.decode()
    for tag in ("svg", "circle", "rect", "path", "table", "tr", "td", "h2"):
        count = dom.count("<%s " % tag) + dom.count("<%s>" % tag)
        assert count == source.count("<%s " % tag) + source.count("<%s>" % tag) > 0, tag
    assert "vm-&lt;b&gt;" in dom and "<b>&" not in dom


@needs_browser
@pytest.mark.parametrize("scheme", SCHEMES)
def test_page_is_drawn(browser, page, scheme):
    colours = browser.colours(page, scheme)
    background, pixels = colours.most_common(1)[0]
    assert (min(background) > 200) if scheme == "light" else (max(background) < 60)
    assert pixels < 0.9 * WIDTH * HEIGHT
    assert len(colours) > 100
    assert colours[BLUE[scheme]] > 1000


@needs_browser
def test_page_without_data_is_not_taken_for_a_good_one(browser):
    """The two tests above see what they are to see."""
    colours = browser.colours(b"<!DOCTYPE html><title>x</title><p>nothing</p>", "light")
    assert len(colours) <= 100 or not colours[BLUE["light"]]
    _, complaints = browser.dom(b"<!DOCTYPE html><script>console.error('x')</script>")
    assert complaints
