# SPDX-License-Identifier: Apache-2.0
"""Who looks at a migration that stands still is told what it waits for, and for how long."""
import os
import pathlib
import re
import subprocess

import pytest

import harness
import pyvmm
from keeper import KeptDaemon
from test_recover import SIZE, Pair

PATIENCE_S = 60

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


def get(daemon):
    return daemon.call("Get", id="vm1")


def waits_for(daemon):
    return (get(daemon)["waiting"] or {}).get("for")


def reason_says(daemon, text):
    harness.eventually(lambda: text in get(daemon)["reason"], "\"%s\" in the reason" % text,
                       deadline_s=PATIENCE_S)


def test_paused_tells_what_is_met_since_when_and_when_next(host):
    pair = Pair(host)
    pair.run()
    assert get(pair.destination)["waiting"] is None
    pair.proxy.refuse(True)
    pair.destination.wait_for_state("vm1", "paused")
    waiting = harness.eventually(
        lambda: (lambda w: w and w["tries"] >= 2 and w["next_try_ms"] and w)(
            get(pair.destination)["waiting"]), "it is tried again and again")
    assert waiting["for"] == "source"
    assert waiting["elapsed_ms"] > 0
    reason_says(pair.destination, "source %s" % pair.proxy.address)
    pair.destination.wait_for_log("paused still: source %s" % pair.proxy.address)
    pair.proxy.refuse(False)
    pair.destination.wait_for_state("vm1", "postcopy")
    assert get(pair.destination)["waiting"] is None
    pair.finish()


def test_tries_before_switchover_are_told_so_too(host):
    pair = Pair(host)
    pair.destination.call("Start", id="vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    harness.eventually(lambda: not get(pair.destination)["reason"], "connected")
    pair.proxy.refuse(True)
    harness.eventually(lambda: waits_for(pair.destination) == "source", "what it waits for")
    reason_says(pair.destination, "; trying on")
    pair.proxy.refuse(False)
    harness.eventually(lambda: waits_for(pair.destination) == "switchover", "that it is over")
    assert get(pair.destination)["reason"] == ""
    pair.destination.call("Switchover", id="vm1")
    pair.source_vmm.pause()
    pair.destination_vmm.load()
    pair.finish()


def test_a_vmm_that_does_not_pause_is_named_at_both_ends(host):
    """Both said "switching", for as long as it lasted, and no more."""
    pair = Pair(host)
    pair.destination.call("Start", id="vm1")
    harness.eventually(lambda: waits_for(pair.source) == "pause", "the source waits for its VMM")
    harness.eventually(lambda: waits_for(pair.destination) == "vmstate", "and is waited for")
    reason_says(pair.source, "the VMM, pid %d, has not answered PAUSE for " % os.getpid())
    reason_says(pair.destination, "the source has not sent the vmstate for ")
    pair.source.wait_for_log("has not answered PAUSE for ")
    pair.destination.wait_for_log("the source has not sent the vmstate for ")
    pair.source_vmm.pause()
    pair.destination_vmm.load()
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.finish()
    assert get(pair.source)["reason"] == get(pair.destination)["reason"] == ""


def test_a_vmm_that_does_not_load_or_run_is_named(host):
    pair = Pair(host)
    pair.destination.call("Start", id="vm1")
    pair.source_vmm.pause()
    harness.eventually(lambda: waits_for(pair.destination) == "load", "what it waits for")
    reason_says(pair.destination, "the VMM, pid %d, has not answered VMSTATE for " % os.getpid())
    pair.destination.wait_for_log("has not answered VMSTATE for ")
    pair.destination_vmm.expect(pyvmm.VMSTATE)
    pair.destination_vmm.send(pyvmm.packet(pyvmm.LOADED))
    harness.eventually(lambda: waits_for(pair.destination) == "resume", "what it waits for now")
    reason_says(pair.destination, "has loaded the vmstate, and not said that its guest runs for ")
    pair.destination_vmm.send(pyvmm.packet(pyvmm.RESUMED))
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.finish()
    assert get(pair.destination)["reason"] == ""


def test_a_silent_destination_is_named_at_the_source(host):
    pair = Pair(host)
    pair.run()
    harness.eventually(lambda: pair.source.state("vm1") == "postcopy", "RESUMED is told")
    pair.proxy.refuse(True)
    harness.eventually(lambda: waits_for(pair.source) == "destination", "what it waits for",
                       deadline_s=PATIENCE_S)
    reason_says(pair.source, "the destination is silent for ")
    pair.source.wait_for_log("the destination is silent for ")
    pair.proxy.refuse(False)
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.finish()


def test_a_migration_that_is_being_cancelled_says_so(host):
    """It said "warming" for the 30 s that a source may take to hear of it."""
    pair = Pair(host)
    pair.destination.call("Start", id="vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    harness.eventually(lambda: not get(pair.destination)["reason"], "connected")
    pair.proxy.refuse(True)
    pair.destination.call("Cancel", id="vm1")
    reason_says(pair.destination, "being cancelled, by command; the source has not acknowledged ABORT")
    pair.proxy.refuse(False)
    assert pair.destination.wait_for_state("vm1", "cancelled")["reason"] == "by command"
    pair.source_vmm.expect(pyvmm.RESUME)


GAVE_UP = "the destination has given up before it ran: "


def test_the_source_hears_that_its_destination_was_cancelled(host):
    pair = Pair(host)
    pair.destination.call("Start", id="vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    harness.eventually(lambda: not get(pair.destination)["reason"], "connected")
    pair.destination.call("Cancel", id="vm1")
    assert pair.source.wait_for_state("vm1", "cancelled")["reason"] == GAVE_UP + "cancelled by command"
    pair.source_vmm.expect(pyvmm.RESUME)


def test_the_source_hears_why_its_destination_has_given_up(host):
    """It said that it had, and no more: who looked at the source did not know where to look."""
    pair = Pair(host)
    pair.destination.call("Start", id="vm1")
    pair.source_vmm.pause()
    pair.destination_vmm.expect(pyvmm.VMSTATE)
    pair.destination_vmm.sock.close()
    there = pair.source.wait_for_state("vm1", "cancelled")["reason"]
    here = pair.destination.wait_for_state("vm1", "failed")["reason"]
    assert there == GAVE_UP + here
    assert here == "the destination VMM can't load the vmstate: the destination VMM is gone"
    pair.source_vmm.expect(pyvmm.RESUME)


def test_the_source_hears_from_the_next_process_why_the_one_before_has_given_up(host):
    pair = Pair(host, destination_kind=KeptDaemon)
    pair.destination.call("Start", id="vm1")
    pair.source_vmm.pause()
    pair.destination_vmm.expect(pyvmm.VMSTATE)
    pair.proxy.refuse(True)
    pair.destination_vmm.sock.close()
    here = pair.destination.wait_for_state("vm1", "failed")["reason"]
    pair.destination.crash()
    pair.proxy.refuse(False)
    pair.destination.start()
    there = pair.source.wait_for_state("vm1", "cancelled")["reason"]
    assert here.startswith("the destination VMM can't load the vmstate: the destination VMM is gone")
    assert there == GAVE_UP + here.split("; ")[0]


@pytest.fixture
def small_tmpfs(host):
    """A tmpfs of half a guest: fill(size=) makes its memory there, grow() makes it whole."""
    path = host.dir / "tmpfs"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%d" % (SIZE // 2), "none", path],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip("a tmpfs of its own size: %s" % done.stderr.strip())
    host.later(lambda: subprocess.run(["umount", "-l", path], check=True))
    return path


def test_a_fill_that_finds_no_memory_is_told_and_goes_on(host, small_tmpfs):
    """Nothing but lines in the log, ten a second of each thread, told that a guest stood still."""
    def make(size):
        fd = os.open(small_tmpfs / "memory", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.truncate(fd, size)
        return fd

    source, destination = host.daemon("source"), host.daemon("destination")
    content = pyvmm.guest_content(SIZE)
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    there = pyvmm.SourceVmm(source, "vm1", content)
    here = pyvmm.DestinationVmm(destination, "vm1", SIZE, make=make)
    host.later(there.close)
    host.later(here.close)
    destination.call("Start", id="vm1")
    there.pause()
    here.load()
    harness.eventually(lambda: waits_for(destination) == "memory", "what it waits for",
                       deadline_s=PATIENCE_S)
    waiting = harness.eventually(lambda: (lambda w: w and w["tries"] >= 3 and w)(
        get(destination)["waiting"]), "again and again")
    assert waiting["for"] == "memory"
    reason_says(destination, "there is no memory for pages that have come (")
    assert get(destination)["state"] == "postcopy"
    destination.wait_for_log("; trying again, ")
    subprocess.run(["mount", "-o", "remount,size=%d" % (4 * SIZE), small_tmpfs], check=True)
    here.expect(pyvmm.COMPLETE)
    assert os.pread(here.memory_fd, SIZE, 0) == content
    done = destination.wait_for_state("vm1", "complete")
    assert done["reason"] == "" and done["waiting"] is None and done["pages_poisoned"] == 0


def test_each_state_is_in_the_document():
    root = pathlib.Path(__file__).parents[2]
    states = re.findall(r"^\t\[MIGRATION_\w+\] = \{ \"(\w+)\"", (root / "src/migrate/state.c").read_text(),
                        re.M)
    rows = re.findall(r"^\| `(\w+)` \|", (root / "docs/troubleshooting.md").read_text(), re.M)
    assert len(states) == 9 and rows == states


@pytest.mark.parametrize("name, at_least", [("troubleshooting", 40), ("upgrading", 8)])
def test_what_the_document_quotes_is_said(name, at_least):
    """The words of each first column are in the source, and its commands are commands."""
    root = pathlib.Path(__file__).parents[2]
    text = "\n".join(path.read_text() for path in (root / "src").rglob("*.c"))
    text = re.sub(r"\"\s*\"", "", text).replace("\\\"", "\"")
    known = text + "\n".join(os.strerror(n) for n in range(1, 134))
    document = (root / ("docs/%s.md" % name)).read_text()
    quotes = [quote for line in document.splitlines() if line.startswith("| ")
              for quote in re.findall(r"`([^`]+)`", line.split(" | ")[0])]
    assert len(quotes) > at_least
    assert [part for quote in quotes for part in quote.split("…")
            if part and part not in known] == []
    usage = subprocess.run([harness.BUILD / "src/ctl/postcopyctl", "--help"], capture_output=True,
                           text=True).stdout
    for verb in re.findall(r"`postcopyctl ([a-z-]+)", document):
        assert re.search(r"^  %s " % verb, usage, re.M), verb
