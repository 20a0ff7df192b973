#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""All guests of a host go to others, by the control planes of their daemons: an example of the package.

    evacuate.py --from host1:7778 --to host2:7778,host3:7778 --cert c.crt --key c.key --ca ca.crt \\
        --exec 'ssh root@${POSTCOPY_TO%:*} start-empty-vmm "$POSTCOPY_ID"'

"postcopyctl evacuate" does the same and more; this shows a control plane its calls, and what to do when
one of them fails:

  - Where a daemon does not answer, the call is made again: it is done once, whoever asks how often.
  - A guest that was not started at its target goes to another. The token is replaced, so the first
    target can't have it any more.
  - One that was started is followed, also while a daemon is restarted, and never tried elsewhere before
    its source has said that it still has it.
  - Nothing is kept here: run again it goes on with what is still to be moved.

Status: 0 all have gone, 1 some have not, 130 interrupted.
"""
import argparse
import asyncio
import os
import sys
import time

import postcopy
from postcopy import messages

# Between the tries of a call that is not answered, in seconds.
AGAIN_S = (0.2, 0.5, 1, 2, 5)
# A migration whose daemon has said nothing for so long is for a person to look at.
SILENT_S = 60
AWAY = (postcopy.Unavailable, postcopy.NotInTime)
AS_SOURCE = [messages.STATE_ATTACHED, messages.STATE_WARMING, messages.STATE_SWITCHING,
             messages.STATE_POSTCOPY, messages.STATE_PAUSED]


class NotStarted(Exception):
    """The guest runs on where it is, and may go elsewhere."""


class LostSight(Exception):
    """Where the guest is can't be said now: its daemons know, and go on without us."""


def say(guest, text):
    print("%s: %s" % (guest, text), flush=True)


async def again(call, *args, **fields):
    """A call, made again while its daemon is away."""
    for wait_s in AGAIN_S:
        try:
            return await call(*args, **fields)
        except AWAY as error:
            print("%s; again in %g s" % (error, wait_s), file=sys.stderr)
            await asyncio.sleep(wait_s)
    return await call(*args, **fields)


async def migrations(daemon, role, states):
    """All of them, page by page."""
    page = await again(daemon.list, states=states)
    while True:
        for migration in page.migrations:
            if migration.role == role:
                yield migration
        if not page.next_page_token:
            return
        page = await again(daemon.list, states=states, page_token=page.next_page_token)


async def state_at(daemon, guest, role):
    """None: it knows nothing of it, or that has ended."""
    try:
        migration = await again(daemon.get, guest, role=role)
    except postcopy.MigrationNotFound:
        return None
    return None if migration.state in postcopy.FINAL else migration.state


async def pages_address(source):
    """Where its page streams are served, as a destination may call it."""
    info = await again(source.get_info)
    host, _, port = info.pages_address.rpartition(":")
    if not port:
        raise NotStarted("the source's daemon serves no page streams: give it \"listen\"")
    if host in ("0.0.0.0", "[::]"):
        is_local = source.address.startswith(("/", "unix:"))
        host = info.hostname if is_local else source.address.rpartition(":")[0]
    return "%s:%s" % (host, port)


async def prepare(source, target, guest):
    """Both halves get a token that nobody else has seen; the source's VMM stays attached."""
    token = postcopy.new_token()
    await again(source.set_token, guest, token=token)
    await again(target.prepare, guest, role=messages.ROLE_DESTINATION, token=token,
                source_address=await pages_address(source))


async def start_vmm(command, target, guest):
    """Has its empty VMM started at the target."""
    if command:
        process = await asyncio.create_subprocess_shell(
            command, env={**os.environ, "POSTCOPY_ID": guest, "POSTCOPY_TO": target.address})
        status = await process.wait()
        if status:
            raise NotStarted("--exec ended with status %d" % status)


async def wait_attached(target, guest, timeout_s):
    try:
        async for migration in target.watch(guest, role=messages.ROLE_DESTINATION, timeout=timeout_s):
            if migration.state not in (messages.STATE_PREPARED, *postcopy.FINAL):
                return
    except postcopy.NotInTime:
        raise NotStarted("its VMM has not attached at %s for %g s" % (
            target.address, timeout_s)) from None
    raise NotStarted("%s at %s" % (messages.State.Name(migration.state), target.address))


async def begin(args, source, target, guest, state):
    """From what there is at the target until the migration is started; else nothing of it is left there."""
    async def leave(error):
        try:
            await target.cancel(guest, role=messages.ROLE_DESTINATION)
        except postcopy.Error:
            pass  # it knows nothing of it, or is away: its token will be worth nothing
        raise NotStarted(str(error)) from error

    try:
        if state is None:
            await prepare(source, target, guest)
        if state != messages.STATE_ATTACHED:
            await start_vmm(args.exec, target, guest)
            await wait_attached(target, guest, args.attach_timeout)
    except (NotStarted, postcopy.Error) as error:
        await leave(error)
    try:
        await again(target.start, guest)
    except AWAY as error:
        raise LostSight("whether it was started is not known: %s" % error) from error
    except postcopy.Refused as error:
        await leave(error)


async def follow(target, guest):
    """Its last state, over restarts of the daemon that has it."""
    heard = time.monotonic()
    while True:
        try:
            async for migration in target.watch(guest, role=messages.ROLE_DESTINATION):
                heard = time.monotonic()
                if migration.state in postcopy.FINAL:
                    return migration
        except AWAY as error:
            if time.monotonic() - heard > SILENT_S:
                raise LostSight(str(error)) from error
            await asyncio.sleep(AGAIN_S[-2])


async def move(args, source, target, guest):
    """One guest to one target. NotStarted: it is still at its source."""
    state = await state_at(target, guest, messages.ROLE_DESTINATION)
    if state in (None, messages.STATE_PREPARED, messages.STATE_ATTACHED):
        await begin(args, source, target, guest, state)
    end = await follow(target, guest)
    if end.state == messages.STATE_COMPLETE:
        return end
    why = "%s: %s" % (messages.State.Name(end.state), end.reason)
    if await state_at(source, guest, messages.ROLE_SOURCE) == messages.STATE_ATTACHED:
        raise NotStarted(why)
    raise LostSight(why)


async def evacuate(args, source, targets, guest, limit):
    """One guest to the first of the targets that takes it. Return: whether it has gone."""
    async with limit:
        for target in targets[:args.tries]:
            say(guest, "goes to %s" % target.address)
            try:
                end = await move(args, source, target, guest)
                say(guest, "moved to %s, downtime %.1f ms" % (
                    target.address, end.destination.downtime.total.ToTimedelta().total_seconds() * 1e3))
                return True
            except NotStarted as why:
                say(guest, "is still here: %s" % why)
            except (LostSight, postcopy.Error) as why:
                say(guest, "look at it: %s" % why)
                return False
        return False


async def plan(source, targets):
    """Each guest with its targets in order: the largest first, each to who gets the least memory, and
    what is under way to where it goes."""
    under_way = {}
    for target in targets:
        async for migration in migrations(target, messages.ROLE_DESTINATION,
                                          [messages.STATE_PREPARED, *AS_SOURCE]):
            under_way[migration.id] = target
    guests = [m async for m in migrations(source, messages.ROLE_SOURCE, AS_SOURCE)]
    planned = dict.fromkeys(targets, 0)
    orders = {}
    for guest in sorted(guests, key=lambda m: (m.id not in under_way, -m.memory_bytes, m.id)):
        first = under_way.get(guest.id)
        order = sorted(targets, key=lambda target: (target is not first, planned[target]))
        planned[order[0]] += guest.memory_bytes
        orders[guest.id] = order
    return orders


async def run(args):
    tls = postcopy.Tls(args.cert, args.key, args.ca) if args.cert else None
    source = postcopy.AsyncClient(args.source, tls)
    targets = [postcopy.AsyncClient(address, tls) for address in args.targets.split(",")]
    try:
        orders = await plan(source, targets)
        limit = asyncio.Semaphore(args.parallel)
        moved = await asyncio.gather(*(evacuate(args, source, order, guest, limit)
                                       for guest, order in orders.items()))
    finally:
        for daemon in (source, *targets):
            await daemon.close()
    print("%d of %d guests moved" % (sum(moved), len(moved)))
    return 0 if all(moved) else 1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--from", dest="source", required=True, metavar="ADDRESS")
    parser.add_argument("--to", dest="targets", required=True, metavar="ADDRESS[,ADDRESS...]")
    parser.add_argument("--exec", metavar="COMMAND", help="has a guest's VMM started at its target; "
                        "$POSTCOPY_ID and $POSTCOPY_TO say which, and where")
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="so many at a time")
    parser.add_argument("--tries", type=int, default=2, metavar="N", help="targets for each guest")
    parser.add_argument("--attach-timeout", type=float, default=60, metavar="SECONDS")
    for name in ("cert", "key", "ca"):
        parser.add_argument("--" + name, metavar="FILE")
    return parser.parse_args()


def main():
    try:
        return asyncio.run(run(arguments()))
    except KeyboardInterrupt:
        print("interrupted: each guest is here or there, and run again it goes on", file=sys.stderr)
        return 130
    except postcopy.Error as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
