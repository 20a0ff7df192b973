# SPDX-License-Identifier: Apache-2.0
"""What a guest says (guest/linux-init.c tells its lines): read as it comes, waited for."""
import re
import socket
import threading
import time

from harness import Failure

READY = re.compile(r"ready (\d+) workers (\d+) pages progress 0x([0-9a-f]+)")
PASS = re.compile(r"pass (\d+) (\d+) pages (\d+) bad (\d+)")
BEAT = re.compile(r"beat (\d+)")


class Console:
    """Listens; QEMU connects as it starts, so that no line is lost."""

    def __init__(self, path, what):
        self.path = path
        self.what = what
        self.lines = []
        self.ended = False
        self.changed = threading.Condition()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            connection, _ = self.listener.accept()
            with connection, connection.makefile(errors="replace") as stream:
                for line in stream:
                    with self.changed:
                        self.lines.append(line.rstrip("\r\n"))
                        self.changed.notify_all()
        except OSError:
            pass  # QEMU was killed, or never came
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait(self, condition, what, deadline_s):
        """Until condition(lines) is true; its value."""
        deadline = time.monotonic() + deadline_s
        with self.changed:
            while True:
                value = condition(self.lines)
                if value:
                    return value
                last = self.lines[-1] if self.lines else "nothing"
                if self.ended:
                    raise Failure("%s ended before: %s; its last line: %s" % (self.what, what, last))
                if not self.changed.wait(max(0, deadline - time.monotonic())):
                    raise Failure("%s, not in time: %s; its last line: %s" % (self.what, what, last))

    def matches(self, expression):
        """Whole lines only: the first at a destination may be the rest of one begun at the source."""
        return [match for match in map(expression.fullmatch, self.lines) if match]

    def close(self):
        self.listener.close()
