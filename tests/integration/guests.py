#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Many guests without vCPUs, each a process of its own, that says what becomes of it on stdout.

    guests.py SOURCE_SOCKET DESTINATION_SOCKET SIZE ID...

A guest is the source VMM and the destination VMM of one migration. Once it is resumed it
touches some of its pages, in no order, and at the end of file of stdin the others, and
compares each with what the source had.
"""
import collections
import ctypes
import json
import os
import random
import signal
import sys

import pyvmm

PR_SET_PDEATHSIG = 1
FIRST_PAGES = 16
Daemon = collections.namedtuple("Daemon", "vmm_path")


def say(**what):
    # Shorter than PIPE_BUF: lines of several processes don't mix.
    os.write(1, json.dumps(what).encode() + b"\n")


def touch(destination, content, pages):
    """How many pages are wrong."""
    page = ctypes.create_string_buffer(pyvmm.PAGE)
    bad = 0
    for offset in pages:
        pyvmm.libc.memcpy(page, destination.addr + offset, pyvmm.PAGE)
        bad += page.raw != content[offset:offset + pyvmm.PAGE]
    return bad


def live(migration_id, source_path, destination_path, size, seed):
    content = pyvmm.guest_content(size, seed)
    with pyvmm.SourceVmm(Daemon(source_path), migration_id, content) as source, \
            pyvmm.DestinationVmm(Daemon(destination_path), migration_id, size) as destination:
        say(event="attached", id=migration_id)
        # No deadline: whoever started this knows how long it may take, and ends it.
        source.sock.settimeout(None)
        destination.sock.settimeout(None)
        source.pause()
        destination.load()
        pages = list(range(0, size, pyvmm.PAGE))
        random.Random(seed).shuffle(pages)
        bad = touch(destination, content, pages[:FIRST_PAGES])
        say(event="touched", id=migration_id)
        os.read(0, 1)
        bad += touch(destination, content, pages[FIRST_PAGES:])
        source.expect(pyvmm.COMPLETE)
        destination.expect(pyvmm.COMPLETE)
        say(event="result", id=migration_id, pages_checked=len(pages), pages_bad=bad)


def main():
    source_path, destination_path, size, *ids = sys.argv[1:]
    children = []
    for seed, migration_id in enumerate(ids):
        pid = os.fork()
        if not pid:
            pyvmm.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            live(migration_id, source_path, destination_path, int(size), seed)
            os._exit(0)
        children.append(pid)
    return int(any([os.waitpid(pid, 0)[1] for pid in children]))


if __name__ == "__main__":
    sys.exit(main())
