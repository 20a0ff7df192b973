# SPDX-License-Identifier: Apache-2.0
"""A libvirtd of a test's own, with QEMU as user libvirt-qemu in its sandbox, and postcopy-libvirt as its hook.

Nothing is installed: its packages are of this host's own suite, fetched and unpacked (debian.py), and laid
below this host's files in a mount namespace, where /run, /etc and /var are the test's.

There is no systemd that would start postcopy-qemu@.service: a systemctl stands in for it, that reads the
unit's file and starts the program again as the unit would. AppArmor's driver is off.
"""
import atexit
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
import uuid

import debian
import harness
from qemu import KERNEL_WORDS, Missing, linux

ROOT = pathlib.Path(__file__).resolve().parents[2]
EMULATOR = "/usr/bin/qemu-system-x86_64"
PACKAGES = ["libvirt-daemon-driver-qemu", "libvirt-daemon", "libvirt-clients", "qemu-system-x86"]
USER = "libvirt-qemu"
MIB = 192
# It asks QEMU first what that can do.
VIRSH_DEADLINE_S = 90

BEGIN = """
set -e
mount --make-rprivate /
mount -t overlay overlay -o lowerdir=/usr:{packages}/usr /usr
libs=lib/x86_64-linux-gnu
[ -L {packages}/lib ] || mount -t overlay overlay -o lowerdir=/usr/$libs:{packages}/$libs /usr/$libs
for name in etc var; do
    mkdir {dir}/$name {dir}/$name.work
    mount -t overlay overlay -o lowerdir=/$name,upperdir={dir}/$name,workdir={dir}/$name.work /$name
done
mount -t tmpfs tmpfs /run
# A /dev/kvm that libvirt's probe of QEMU opens, and its user may not, has it probe again at each step: the
# domain needs none, and finds none.
mkdir {dir}/dev
mount -t tmpfs -o mode=755 tmpfs {dir}/dev
for name in null zero full random urandom tty userfaultfd; do
    [ ! -e /dev/$name ] || cp -a /dev/$name {dir}/dev/
done
for path in $(sed -n 's,^[^ ]* /dev/\\([^ /]*\\) .*,\\1,p' /proc/mounts | sort -u); do
    mkdir {dir}/dev/$path
    mount --bind /dev/$path {dir}/dev/$path
    # libvirt moves each once, by name
    while umount -l /dev/$path 2>/dev/null; do :; done
done
ln -s pts/ptmx {dir}/dev/ptmx
mount --move {dir}/dev /dev
grep -q ^{user}: /etc/passwd || echo {user}:x:64055:64055::/var/lib/libvirt:/bin/false >>/etc/passwd
grep -q ^{user}: /etc/group || echo {user}:x:64055: >>/etc/group
rm -rf /etc/libvirt /var/lib/libvirt /var/cache/libvirt
mkdir -p /etc/libvirt/hooks/qemu.d /var/lib/libvirt /var/cache/libvirt
mount --bind {cache} /var/cache/libvirt
cat >/etc/libvirt/qemu.conf <<C
user = "{user}"
group = "{user}"
security_driver = "none"
cgroup_controllers = [ ]
stdio_handler = "file"
memory_backing_dir = "{shm}"
C
cat >/etc/libvirt/libvirtd.conf <<C
unix_sock_dir = "{dir}/run"
auth_unix_rw = "none"
auth_unix_ro = "none"
host_uuid = "{uuid}"
C
cat >/etc/libvirt/hooks/qemu.d/postcopy <<C
#!/bin/sh
POSTCOPYD_VMM_SOCKET={vmm} exec {root}/src/libvirt/hook "\\$@"
C
chmod 755 /etc/libvirt/hooks/qemu.d/postcopy
exec {libvirtd}
"""

# Of systemctl "restart" alone; as there the one before has ended first: its processes hold the lock.
SYSTEMCTL = """#!/bin/sh
for word; do unit=$word; done
export id=${{unit#postcopy-qemu@}}
export id=${{id%.service}} AGAIN=75 LOG={log}
exec setsid sh -c '
    group=/run/postcopy-qemu@$id
    [ ! -e $group ] || flock -n $group true || {{ kill -- -$(cat $group); flock $group true; }}
    exec 9>$group
    flock 9
    echo $$ >&9
    . /run/postcopy-qemu/$id.conf
    while postcopy-qemu $ROLE --id $id --qmp $QMP $OPTIONS >>$LOG 2>&1; [ $? = $AGAIN ]; do sleep 1; done
    ' </dev/null >/dev/null 2>&1 &
"""
DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>5a5a5a5a-0000-4000-8000-00000000000{number}</uuid>
  <memory unit='MiB'>{mib}</memory>
  <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{words} check_mib=64</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <devices>
    <emulator>{emulator}</emulator>
    <console type='unix'><source mode='connect' path='{console}'/><target type='virtio'/></console>
    <memballoon model='virtio'/>
  </devices>
  {qmp}
</domain>
"""
QMP = """<qemu:commandline>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{qmp},server=on,wait=off'/>
  </qemu:commandline>"""


@functools.lru_cache(None)
def cache():
    """What libvirt has found QEMU to be able to: it takes its time to ask."""
    path = tempfile.mkdtemp(prefix="postcopyd-libvirt-")
    atexit.register(shutil.rmtree, path)
    return path


def fetch():
    """The packages' root. Raises Missing and debian.Unavailable."""
    if os.geteuid():
        raise Missing("a libvirtd of the test's own wants root")
    for program in ("unshare", "nsenter", "flock"):
        if not shutil.which(program):
            raise Missing("there is no %s" % program)
    with open("/etc/os-release") as release:
        names = dict(line.rstrip().split("=", 1) for line in release if "=" in line)
    if names.get("ID") != "debian" or "VERSION_CODENAME" not in names:
        raise Missing("libvirt is laid below a Debian's files, which this host is not")
    return debian.fetch(names["VERSION_CODENAME"], PACKAGES)


def open_to_all(path):
    """For user libvirt-qemu, which is nobody here."""
    path.chmod(0o777 if path.is_dir() or path.is_socket() else 0o644)
    return path


def boot_files(to):
    """The kernel and the initramfs, where user libvirt-qemu can read them."""
    return [open_to_all(pathlib.Path(shutil.copy(file, to / pathlib.Path(file).name)))
            for file in linux(harness.BUILD)]


class Libvirtd(harness.Process):
    def __init__(self, host, daemon, name):
        self.host = host
        self.dir = host.dir / host._name(name)
        self.bin = self.dir / "bin"
        shm = pathlib.Path("/dev/shm") / ("postcopyd-%s-%s" % (host.dir.name, self.dir.name))
        for directory in (self.dir, shm, self.bin, self.dir / "run"):
            directory.mkdir()
            directory.chmod(0o755)
        host.later(lambda: shutil.rmtree(shm))
        self.adapter_log = self.dir / "adapters.log"
        self._make_programs()
        self.uri = "qemu:///system?socket=%s/run/libvirt-sock" % self.dir
        self.command = ["env", "PATH=%s:%s" % (self.bin, os.environ["PATH"]), "libvirtd"]
        script = BEGIN.format(
            packages=fetch(), dir=self.dir, cache=cache(), shm=shm, vmm=daemon.vmm_path, root=ROOT,
            user=USER, uuid=uuid.uuid4(), libvirtd=" ".join(self.command))
        super().__init__(name, ["unshare", "--mount", "sh", "-c", script], self.dir / "libvirtd.log")
        host._started(self)
        harness.eventually(self._answers, "libvirtd answers", VIRSH_DEADLINE_S)
        # Outlives it.
        self.namespace = os.open("/proc/%d/ns/mnt" % self.pid, os.O_RDONLY | os.O_CLOEXEC)
        host.later(lambda: os.close(self.namespace))

    def restart(self):
        """Its QEMUs run on."""
        self.popen.terminate()
        self.wait()
        super().__init__(self.name, [*self.enter, *self.command], self.log_path)
        harness.eventually(self._answers, "libvirtd answers", VIRSH_DEADLINE_S)

    def _make_programs(self):
        for program in ("src/libvirt/postcopy-libvirt",):
            (self.bin / pathlib.Path(program).name).symlink_to(ROOT / program)
        for program in ("src/qemu/postcopy-qemu", "src/ctl/postcopyctl"):
            (self.bin / pathlib.Path(program).name).symlink_to(harness.BUILD / program)
        systemctl = self.bin / "systemctl"
        systemctl.write_text(SYSTEMCTL.format(log=self.adapter_log))
        systemctl.chmod(0o755)

    def _answers(self):
        if self.popen.poll() is not None:
            raise harness.Failure("libvirtd ended with status %d: %s" % (self.popen.returncode,
                                                                        self.log()))
        return not self.ask("version").returncode

    @property
    def enter(self):
        namespace = getattr(self, "namespace", None)
        if namespace is None:
            return ["nsenter", "--mount=/proc/%d/ns/mnt" % self.pid]
        return ["nsenter", "--mount=/proc/%d/fd/%d" % (os.getpid(), namespace)]

    def look(self, *command):
        """What a command says that sees its files."""
        return subprocess.run([*self.enter, *command], stdin=subprocess.DEVNULL, check=True,
                              capture_output=True, text=True, timeout=VIRSH_DEADLINE_S).stdout

    def ask(self, *words):
        return subprocess.run([*self.enter, "virsh", "--connect", self.uri, "--quiet", *map(str, words)],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=VIRSH_DEADLINE_S)

    def virsh(self, *words):
        done = self.ask(*words)
        if done.returncode:
            raise harness.Failure("virsh %s: %s" % (" ".join(map(str, words)), done.stderr))
        return done.stdout.strip()

    def state(self, name):
        done = self.ask("domstate", name)
        return done.stdout.strip() if not done.returncode else "absent"

    def log(self):
        parts = [super().log()]
        files = [self.adapter_log, *(self.dir / "var/log").rglob("*.log")]
        return "\n".join(parts + [file.read_text(errors="replace") for file in files if file.exists()])

    def kill(self):
        """Its QEMUs are daemons of their own."""
        if self.popen.poll() is None:
            for name in self.ask("list", "--name").stdout.split():
                self.ask("destroy", name)
        super().kill()

    def move(self, name, to, daemons, *extra):
        """postcopy-libvirt migrate: (exit status, what it says)"""
        there, here = daemons
        done = subprocess.run(
            [*self.enter, self.bin / "postcopy-libvirt", "migrate", name, to.uri, "--connect", self.uri,
             "--from", there.control_path, "--to", here.control_path, "--socket", there.vmm_path,
             *map(str, extra)],
            env={**os.environ, "PATH": "%s:%s" % (self.bin, os.environ["PATH"])},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=2 * VIRSH_DEADLINE_S)
        return done.returncode, done.stdout + done.stderr


def domain_xml(directory, name, console, qmp, number=0):
    """A file of a domain; each side has sockets of its own, for both are on one host here."""
    kernel, initrd = boot_files(directory)
    path = directory / (console.path.stem + ".xml")
    path.write_text(DOMAIN.format(
        name=name, number=number, mib=MIB, kernel=kernel, initrd=initrd, words=KERNEL_WORDS,
        emulator=EMULATOR, console=console.path, qmp=QMP.format(qmp=qmp) if qmp else ""))
    open_to_all(console.path)
    return path
