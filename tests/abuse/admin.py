# SPDX-License-Identifier: Apache-2.0
"""An administrator's calls, one after the other on a connection that stays, each timed
(timed_client.py).

    admin.py {NAME: {"control":, "pid":}, ...}
"""
import json
import select
import sys

import hostile
from timed_client import TimedClient, request

CALLS_PER_S = 20
CALLS = {
    "List": request("Migrations", "List"),
    "Get": request("Migrations", "Get", id="vm-long"),
    "GetInfo": request("Host", "GetInfo"),
}


def main():
    admins = [(name, TimedClient(daemon["control"], daemon["pid"]))
              for name, daemon in json.loads(sys.argv[1]).items()]
    calls, failed = [], []
    turn, ended = 0, False
    while not ended:
        name, admin = admins[turn % len(admins)]
        method = list(CALLS)[turn // len(admins) % len(CALLS)]
        try:
            calls.append((name + " " + method, *admin.call(*CALLS[method])))
        except hostile.REFUSALS as error:
            failed.append("%s %s: %s" % (name, method, error))
        turn += 1
        ended = bool(select.select([0], [], [], 1 / CALLS_PER_S)[0])
    print(json.dumps({"calls": calls, "failed": failed}), flush=True)


if __name__ == "__main__":
    main()
