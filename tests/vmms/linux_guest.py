# SPDX-License-Identifier: Apache-2.0
"""The Linux guest: Debian's cloud kernel, and an initramfs whose only program is guest/linux-init.c."""
import lzma
import pathlib

import debian

SUITE = "trixie"
# What the kernel does not have built in, in the order in which they need each other.
MODULES = ("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
           "drivers/virtio/virtio_balloon")
DIRECTORY, PROGRAM, FILE, DEVICE = 0o040755, 0o100755, 0o100644, 0o020600


def cpio_entry(number, name, mode, data=b"", device=(0, 0)):
    """One file in the "newc" format, all that Documentation/driver-api/early-userspace asks for."""
    name = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
    entry = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    entry += b"\0" * (-len(entry) % 4) + data
    return entry + b"\0" * (-len(entry) % 4)


def initramfs(init, modules):
    files = [("dev", DIRECTORY, b"", (0, 0)), ("dev/console", DEVICE, b"", (5, 1)),
             ("init", PROGRAM, init, (0, 0)), ("modules", DIRECTORY, b"", (0, 0))]
    files += [("modules/%d.ko" % i, FILE, data, (0, 0)) for i, data in enumerate(modules)]
    files.append(("TRAILER!!!", 0, b"", (0, 0)))
    return b"".join(cpio_entry(number, *file) for number, file in enumerate(files, 1))


def fetch_kernel(refresh=False):
    return debian.fetch(SUITE, ["linux-image-cloud-amd64"], wanted=r"linux-image-\d", refresh=refresh)


def build(build_directory, to):
    """Writes the initramfs into the directory `to`: (kernel, initramfs)"""
    root = fetch_kernel()
    [kernel] = (root / "boot").glob("vmlinuz-*")
    [tree] = (root / "usr/lib/modules").glob("*/kernel")
    modules = [lzma.decompress((tree / (name + ".ko.xz")).read_bytes()) for name in MODULES]
    init = pathlib.Path(build_directory) / "tests/vmms/guest/linux-init"
    image = pathlib.Path(to) / "initramfs"
    image.write_bytes(initramfs(init.read_bytes(), modules))
    return kernel, image
