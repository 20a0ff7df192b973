#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# QEMU takes O_NONBLOCK off each descriptor that it is given over its monitor's socket (SCM_RIGHTS, for
# "getfd", "add-fd"). O_NONBLOCK is of the open file, not of the descriptor, so it goes from the
# sender's own descriptor, too: an event loop that keeps one end of it may hang in read() or write() from then
# on. It is the socket that does it, when the bytes arrive, and not the command: a descriptor that no
# command asks for loses it as well. Its sources call that intended ("reset it", chardev/char-socket.c).
#
# Who passes a pipe that he uses himself opens it anew for QEMU: /proc/self/fd/N gives an open file of its
# own. A userfaultfd can't be opened anew, and systemd's store drops one that blocks: there O_NONBLOCK is
# set again once the command is answered.
#
# Seen on Linux 6.18.44 (Python 3.11), with QEMU 7.2.22, 10.0.13 and 11.1.3 of Debian:
#   sent with getfd: O_NONBLOCK before, none after
#   sent with add-fd: O_NONBLOCK before, none after
#   sent with query-name: O_NONBLOCK before, none after
#   getfd of one that was opened anew: O_NONBLOCK before, O_NONBLOCK after
# Usage: qemu-getfd-clears-nonblock.sh [QEMU], by default qemu-system-x86_64.
# Exit: 0 as seen; 1 where QEMU behaves differently; 2 where it can't be tried.
set -eu
qemu=${1-qemu-system-x86_64}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.py" <<'END'
import fcntl
import json
import os
import socket
import subprocess
import sys
import time

DEADLINE_S = 30


class Monitor:
    def __init__(self, path, qemu):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError as error:
                if qemu.poll() is not None or time.monotonic() > deadline:
                    raise OSError("QEMU's monitor: %s" % error) from None
                time.sleep(0.02)
        self.lines = self.socket.makefile()
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, fd=None, **arguments):
        text = json.dumps({"execute": command, "arguments": arguments}).encode()
        rights = [] if fd is None else [fd]
        socket.send_fds(self.socket, [text], rights)
        for line in self.lines:
            answer = json.loads(line)
            if "return" in answer:
                return
            if "error" in answer:
                raise OSError("%s: %s" % (command, answer["error"]["desc"]))
        raise OSError("QEMU has ended")


def flag(fd):
    return "O_NONBLOCK" if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK else "none"


def say(what, fd, send):
    before = flag(fd)
    send()
    print("%s: %s before, %s after" % (what, before, flag(fd)), flush=True)


def pipe():
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)[0]


def main(qemu, path):
    monitor = Monitor(path, qemu)
    fd = pipe()
    say("sent with getfd", fd, lambda: monitor.ask("getfd", fd, fdname="a"))
    fd = pipe()
    say("sent with add-fd", fd, lambda: monitor.ask("add-fd", fd))
    fd = pipe()
    say("sent with query-name", fd, lambda: monitor.ask("query-name", fd))
    fd = pipe()
    anew = os.open("/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_NONBLOCK)
    say("getfd of one that was opened anew", fd, lambda: monitor.ask("getfd", anew, fdname="b"))


path = sys.argv[2]
try:
    process = subprocess.Popen([sys.argv[1], "-machine", "none", "-nodefaults", "-display", "none",
                                "-S", "-qmp", "unix:%s,server=on,wait=off" % path])
except OSError as error:
    print("can't be tried here: %s" % error)
    sys.exit(2)
try:
    main(process, path)
except OSError as error:
    print("can't be tried here: %s" % error)
    sys.exit(2)
finally:
    process.kill()
    process.wait()
END
status=0
python3 "$dir/t.py" "$qemu" "$dir/qmp" >"$dir/seen" || status=$?
cat "$dir/seen"
if [ $status != 0 ]; then exit 2; fi
sed -n 's/^#   //p' "$0" >"$dir/expected"
if ! cmp -s "$dir/seen" "$dir/expected"; then
	echo "another behaviour than the one that is written down"
	exit 1
fi
