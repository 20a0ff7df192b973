# SPDX-License-Identifier: Apache-2.0
"""Debian packages of any suite, unpacked into a folder of their own: nothing is installed.

    root = debian.fetch("trixie", ["qemu-system-x86"])

A root is fetched once, from the mirror that this host's apt has for Debian, with lists and a state
of its own and signatures checked by debian-archive-keyring, and is kept in
${XDG_CACHE_HOME:-~/.cache}/postcopyd/vmms. POSTCOPYD_DEBIAN_MIRROR may name another mirror, such as
a snapshot's address. What can't be had raises Unavailable, whose text is a reason to skip.
"""
import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
LOADER = "ld-linux-x86-64.so.2"
# A mirror that does not answer must not hold the tests up.
APT_DEADLINE_S = 600


class Unavailable(Exception):
    pass


def cache_dir():
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "postcopyd" / "vmms"


@contextlib.contextmanager
def locked(path):
    """Many workers may want the same root: the first fetches it, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command, **kwargs):
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=APT_DEADLINE_S, **kwargs)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["status %d" % done.returncode]
        raise Unavailable("%s: %s" % (command[0], said[-1]))
    return done.stdout


def mirrors():
    if os.environ.get("POSTCOPYD_DEBIAN_MIRROR"):
        yield os.environ["POSTCOPYD_DEBIAN_MIRROR"]
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages",
                "Origin: Debian", "Label: Debian")
    yield from sorted(set(found.split()))


class Apt:
    """One suite as seen by an apt that knows of no installed package."""

    def __init__(self, folder, mirror, suite):
        for part in ("preferences", "state", "lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        # a snapshot's lists are past their date by nature
        (folder / "sources.list").write_text("deb [arch=amd64 signed-by=%s check-valid-until=no] "
                                             "%s %s main\n" % (KEYS, mirror, suite))
        self.folder = folder
        options = {
            "Dir::Etc::SourceList": folder / "sources.list", "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "-", "Dir::Etc::PreferencesParts": folder / "preferences",
            "Dir::State": folder / "state", "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status", "Dir::Cache": folder / "cache",
            "APT::Architecture": "amd64", "APT::Sandbox::User": "root",
            "Acquire::Languages": "none", "Acquire::Retries": "2",
        }
        self.options = [word for name, value in options.items()
                        for word in ("-o", "%s=%s" % (name, value))]
        self.get("update", "--error-on=any")

    def get(self, *words, **kwargs):
        return run("apt-get", "-qq", *self.options, *words, **kwargs)

    def with_dependencies(self, names):
        """{name: version}, the newest that the suite has."""
        plan = self.get("--simulate", "--no-install-recommends", "install", *names)
        return dict(re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE))

    def unpack(self, packages, root):
        archives = self.folder / "cache" / "archives"
        self.get("download", *("%s=%s" % item for item in packages.items()), cwd=archives)
        root.mkdir()
        for archive in sorted(archives.glob("*.deb")):
            run("dpkg-deb", "--extract", str(archive), str(root))
            archive.unlink()


def fetch_from(mirror, suite, names, wanted, root):
    with tempfile.TemporaryDirectory(dir=root.parent, prefix="apt-") as folder:
        folder = pathlib.Path(folder)
        apt = Apt(folder, mirror, suite)
        packages = {name: version for name, version in apt.with_dependencies(names).items()
                    if re.match(wanted, name)}
        if not packages:
            raise Unavailable("%s of %s needs none of %s" % (names, suite, wanted))
        versions = "".join("%s %s\n" % item for item in sorted(packages.items()))
        versions_file = root / "versions"
        if versions_file.exists() and versions_file.read_text() == versions:
            return
        apt.unpack(packages, folder / "root")
        (folder / "root" / "versions").write_text(versions)
        shutil.rmtree(root, ignore_errors=True)
        (folder / "root").rename(root)


def fetch(suite, names, wanted="", refresh=False):
    """The root with these packages and all that they depend on, or only those of them whose names
    match the expression `wanted`. With refresh, a root of older versions is replaced."""
    recipe = hashlib.sha256(repr((names, wanted)).encode()).hexdigest()[:8]
    root = cache_dir() / ("%s-%s-%s" % (suite, names[0], recipe))
    with locked(root.with_suffix(".lock")):
        if (root / "versions").exists() and not refresh:
            return root
        reasons = []
        for mirror in mirrors():
            try:
                fetch_from(mirror, suite, names, wanted, root)
                return root
            except Unavailable as why:
                reasons.append("%s: %s" % (mirror, why))
    raise Unavailable("%s of Debian %s can't be had: %s; POSTCOPYD_DEBIAN_MIRROR names another mirror"
                      % (names[0], suite, "; ".join(reasons) or "apt has no mirror of Debian"))


def version(root, name):
    for line in (root / "versions").read_text().splitlines():
        package, _, found = line.partition(" ")
        if package == name:
            return found
    raise KeyError(name)


def loader(root):
    """The words that start a program of this root with its own libraries, not this host's. (LD_LIBRARY_PATH
    would need the host's ld.so to be as new as the root's libc.)"""
    folders = [str(path) for pattern in ("lib", "usr/lib")
               for path in (root / pattern / "x86_64-linux-gnu",
                            root / pattern / "x86_64-linux-gnu/systemd") if path.is_dir()]
    found = [path for path in (root / "lib/x86_64-linux-gnu" / LOADER,
                               root / "usr/lib/x86_64-linux-gnu" / LOADER) if path.is_file()]
    if not found:
        raise Unavailable("%s has no %s" % (root, LOADER))
    return [str(found[0]), "--library-path", ":".join(folders)]
