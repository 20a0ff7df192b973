# SPDX-License-Identifier: Apache-2.0
"""A file in a filesystem whose server does not answer, as a stranger can have it by FUSE: each
question to it waits for good. It is mounted in a namespace of its own and gone with its server."""
import array
import ctypes
import os
import select
import socket
import struct
import subprocess
import sys

LOOKUP, GETATTR, OPEN, STATFS, FLUSH, INIT, RELEASE, FORGET = 1, 3, 14, 17, 25, 26, 18, 2
NAMES = {GETATTR: "getattr", STATFS: "statfs", FLUSH: "flush", RELEASE: "release"}
CLONE_NEWNS, MS_NOSUID_NODEV, MS_REC_PRIVATE = 0x00020000, 2 | 4, 0x44000


def attributes(mode):
    """Of a MiB, so that nothing but the kind speaks against it."""
    return struct.pack("<6Q10I", 1, 1 << 20, 2048, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer_to(opcode, node):
    if opcode == INIT:
        return struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 8, 8, 1 << 16, 1, 16, 0, *[0] * 8)
    if opcode == LOOKUP:
        return struct.pack("<4Q2I", 2, 1, 0, 0, 0, 0) + attributes(0o100666)
    if opcode == GETATTR:
        return struct.pack("<Q2I", 0, 0, 0) + attributes(0o40777 if node == 1 else 0o100666)
    if opcode == OPEN:
        return struct.pack("<Q2I", 0, 0, 0)
    return b""


def serve(dev, ready):
    """Answers until @ready is read from, then only tells what it is asked."""
    silent = False
    while True:
        readable, _, _ = select.select([dev, 0, ready], [], [])
        if 0 in readable:
            os._exit(0)
        if ready in readable and not silent:
            silent = True
            print("silent", flush=True)
            ready = 0
            continue
        if dev not in readable:
            continue
        request = os.read(dev, 1 << 17)
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        if silent:
            print(NAMES.get(opcode, opcode), flush=True)
        elif opcode not in (FORGET, RELEASE):
            body = answer_to(opcode, node)
            os.write(dev, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)


def main():
    libc = ctypes.CDLL(None, use_errno=True)
    channel, directory = socket.socket(fileno=int(sys.argv[1])), sys.argv[2].encode()
    dev = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None) or \
            libc.mount(b"silent", directory, b"fuse", MS_NOSUID_NODEV,
                       b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % dev):
        sys.exit("mounting FUSE: %s" % os.strerror(ctypes.get_errno()))
    opened, child = os.pipe()
    # The server has no copy of the file: closing it would be a question to itself.
    if os.fork():
        channel.close()
        os.close(child)
        serve(dev, opened)
    os.close(dev)
    fd = os.open(directory + b"/memory", os.O_RDWR)
    channel.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    # Silent from here on: what this process closes is asked of the server, too.
    os._exit(0)


class SilentFile:
    """@fd is open until close(): no process may be started meanwhile, for it would close it."""

    def __init__(self, directory):
        ours, theirs = socket.socketpair()
        self.popen = subprocess.Popen([sys.executable, __file__, str(theirs.fileno()),
                                       str(directory)], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      pass_fds=[theirs.fileno()])
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        ours.close()
        self.fd = fds[0] if fds else -1
        self.why = None if fds else self.popen.stderr.read().decode()
        if fds:
            assert self.popen.stdout.readline() == b"silent\n"

    def close(self):
        """Returns what it was asked since it fell silent. Then nothing waits for it any more."""
        asked = self.popen.communicate(b"")[0].decode().split()
        if self.fd >= 0:
            try:
                os.close(self.fd)
            except OSError:
                pass  # ENOTCONN: closed all the same
            self.fd = -1
        return asked


if __name__ == "__main__":
    main()
