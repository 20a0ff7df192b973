# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor: commands with their answers, and events to wait for."""
import json
import socket
import threading
import time


class QmpError(Exception):
    """What QEMU refused, or that it is gone."""


class Qmp:
    def __init__(self, path, deadline_s):
        self.deadline_s = deadline_s
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(deadline_s)
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("rw")
        self.events = []
        self.answers = {}
        self.closed = False
        self.count = 0
        self.changed = threading.Condition()
        json.loads(self.stream.readline())
        self.socket.settimeout(None)
        threading.Thread(target=self._read, daemon=True).start()
        self.execute("qmp_capabilities")

    def _read(self):
        try:
            for line in self.stream:
                message = json.loads(line)
                with self.changed:
                    if "event" in message:
                        self.events.append(message)
                    else:
                        self.answers[message.get("id")] = message
                    self.changed.notify_all()
        except (OSError, ValueError):
            pass  # closed by us, or QEMU was killed within a line
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _wait(self, condition, what, deadline_s=None):
        deadline = time.monotonic() + (deadline_s or self.deadline_s)
        with self.changed:
            while True:
                value = condition()
                if value:
                    return value
                if self.closed:
                    raise QmpError("QEMU ended its monitor before: %s" % what)
                if not self.changed.wait(max(0, deadline - time.monotonic())):
                    raise QmpError("not in time: %s" % what)

    def execute(self, command, **arguments):
        self.count += 1
        number = self.count
        request = {"execute": command, "arguments": arguments, "id": number}
        try:
            self.stream.write(json.dumps(request) + "\n")
            self.stream.flush()
        except OSError as error:
            raise QmpError("%s: %s" % (command, error)) from None
        answer = self._wait(lambda: self.answers.pop(number, None), command)
        if "error" in answer:
            raise QmpError("%s: %s" % (command, answer["error"]["desc"]))
        return answer["return"]

    def wait_for_event(self, name, since=0, deadline_s=None, **data):
        """The first event of that name with that data, from the since-th event on."""
        def found():
            for event in self.events[since:]:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    return event
            return None
        return self._wait(found, "event %s %s" % (name, data or ""), deadline_s)

    def hmp(self, line):
        return self.execute("human-monitor-command", **{"command-line": line})

    def close(self):
        self.socket.close()
