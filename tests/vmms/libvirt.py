# SPDX-License-Identifier: Apache-2.0
"""A real libvirtd of Debian's with its QEMU, in a root and a mount namespace of its own: as on a host where
nothing else runs. Processes are this host's, so a daemon and postcopy-qemu reach them as they would there."""
import os
import shlex
import shutil
import subprocess

import debian
import harness
from qemu import Missing

SUITE = "trixie"
PACKAGES = ["libvirt-daemon-driver-qemu", "libvirt-daemon", "libvirt-clients", "qemu-system-x86"]

# What docs/vmms.md has, and what a root without a service manager, cgroups and users of its own takes.
QEMU_CONF = """
memory_backing_dir = "%(memory)s"
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""
LIBVIRTD_CONF = """
unix_sock_dir = "%(sockets)s"
unix_sock_group = "root"
auth_unix_rw = "none"
log_outputs = "2:stderr"
"""
# Of a root, with the test's directory @dir in the same place.
ENTER = """
set -e
mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work} {root}
cd {root}
mount --rbind /proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs run
mkdir -p .{dir}
mount --rbind {dir} .{dir}
exec chroot . /usr/sbin/libvirtd
"""


def fetch():
    if os.geteuid():
        raise Missing("a root of libvirtd's own takes root")
    for program in ("unshare", "chroot"):
        if not shutil.which(program):
            raise Missing("there is no %s" % program)
    return debian.fetch(SUITE, PACKAGES)


class Libvirt(harness.Process):
    """One host's; @memory: the directory of its guests' memory, on tmpfs."""

    def __init__(self, host, memory):
        lower = fetch()
        name = host._name("libvirt")
        base = host.dir / name
        self.sockets = base / "s"
        self.memory = memory
        for part in ("s", "upper/etc/libvirt", "work", "root"):
            (base / part).mkdir(parents=True)
        etc = base / "upper/etc"
        (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/bin/false\n")
        (etc / "group").write_text("root:x:0:\nkvm:x:110:\nlibvirt-qemu:x:64055:\n")
        (etc / "libvirt/qemu.conf").write_text(QEMU_CONF % {"memory": memory})
        (etc / "libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF % {"sockets": self.sockets})
        paths = {"lower": lower, "upper": base / "upper", "work": base / "work", "root": base / "root",
                 "dir": host.dir}
        script = ENTER.format(**{key: shlex.quote(str(path)) for key, path in paths.items()})
        super().__init__(name, ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                         host.dir / (name + ".log"))
        self.uri = "qemu+unix:///system?socket=%s" % (self.sockets / "libvirt-sock")
        self.virsh_words = [*debian.loader(lower), lower / "usr/bin/virsh", "-q", "-c", self.uri]
        harness.eventually(self._serves, "%s serves" % name)

    def _serves(self):
        if self.popen.poll() is not None:
            raise harness.Failure("%s: %s" % (self.name, self.log()))
        return (self.sockets / "libvirt-sock").exists()

    def virsh(self, *words):
        done = subprocess.run([str(word) for word in (*self.virsh_words, *words)], capture_output=True,
                              stdin=subprocess.DEVNULL, text=True, timeout=harness.DEADLINE_S)
        if done.returncode:
            raise harness.Failure("virsh %s: %s" % (" ".join(map(str, words)), done.stderr.strip()))
        return done.stdout.strip()

    def kill(self):
        """Its guests outlive a libvirtd, as they should."""
        if self.popen.poll() is None:
            for name in self.virsh("list", "--name").split():
                self.virsh("destroy", name)
        super().kill()
