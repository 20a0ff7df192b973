# SPDX-License-Identifier: Apache-2.0
"""An administrator's calls, one after the other on a connection that stays, each timed.

    admin.py {NAME: {"control":, "pid":}, ...}

On a busy machine a call takes as long as whoever is to run waits for a CPU, and that is nobody's
fault here. The kernel counts it, for each thread (schedstat). So besides the time that a call took,
its time without that is told: without what this process and the daemon's loop have waited for a CPU.
What else the loop did meanwhile, and what it waited for, is in it.
"""
import json
import os
import select
import sys
import time

import hostile  # noqa: F401  (finds the integration tests' modules)
from harness import Control

CALLS_PER_S = 20
CALLS = (("Migrations", "List"), ("Migrations", "Get"), ("Host", "GetInfo"))


def waited_ns(task):
    """For how long it has been ready to run, and did not."""
    try:
        with open(task + "/schedstat") as stat:
            return int(stat.read().split()[1])
    except (OSError, IndexError):
        return 0  # it has ended since


class Admin:
    def __init__(self, name, daemon):
        self.name = name
        self.control = Control(daemon["control"])
        self.loop = "/proc/%d/task/%d" % (daemon["pid"], daemon["pid"])

    def waited_ns(self):
        ours = "/proc/self/task/"
        return waited_ns(self.loop) + sum(waited_ns(ours + task) for task in os.listdir(ours))

    def call(self, service, method):
        """(seconds, the same without waiting for a CPU)"""
        fields = {"id": "vm-long"} if method == "Get" else {}
        call = self.control.client.host if service == "Host" else self.control.client.migrations
        waited, began = self.waited_ns(), time.monotonic()
        call(method, timeout=30, **fields)
        took = time.monotonic() - began
        waited = (self.waited_ns() - waited) / 1e9
        return took, max(0, took - waited)


def main():
    admins = [Admin(*item) for item in json.loads(sys.argv[1]).items()]
    calls, failed = [], []
    turn, ended = 0, False
    while not ended:
        admin = admins[turn % len(admins)]
        service, method = CALLS[turn // len(admins) % len(CALLS)]
        try:
            calls.append((admin.name + " " + method, *admin.call(service, method)))
        except hostile.REFUSALS as error:
            failed.append("%s %s: %s" % (admin.name, method, error))
        turn += 1
        ended = bool(select.select([0], [], [], 1 / CALLS_PER_S)[0])
    print(json.dumps({"calls": calls, "failed": failed}), flush=True)
    # grpcio's threads need not be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
