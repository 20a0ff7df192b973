# SPDX-License-Identifier: Apache-2.0
"""Debian's QEMU of a suite, to start with its own libraries and firmware."""
import os
import shlex

import debian

SUITES = ("bookworm", "trixie", "sid")
PACKAGE = "qemu-system-x86"
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


def launcher_text(root, program):
    """The program is started by its own ld.so, so it can't find its files by where it lies."""
    words = debian.loader(root) + ["--argv0", program.name, str(program)]
    for folder in FIRMWARE:
        words += ["-L", str(root / folder)]
    modules = root / "usr/lib/x86_64-linux-gnu/qemu"
    return '#!/bin/sh\nexport QEMU_MODULE_DIR=%s\nexec %s "$@"\n' % (
        shlex.quote(str(modules)), shlex.join(words))


def write_launcher(root):
    program = root / "usr/bin/qemu-system-x86_64"
    launcher = root / program.name
    text = launcher_text(root, program)
    if not launcher.exists() or launcher.read_text() != text:
        # whole at once: somebody may be starting it
        new = launcher.with_suffix(".%d" % os.getpid())
        new.write_text(text)
        new.chmod(0o755)
        new.rename(launcher)
    return launcher


def fetch(suite, refresh=False):
    """(version, program)"""
    root = debian.fetch(suite, [PACKAGE], refresh=refresh)
    return debian.version(root, PACKAGE), write_launcher(root)
