# SPDX-License-Identifier: Apache-2.0
"""The Python package, against a daemon: both clients, both transports, and errors by their names."""
import asyncio
import datetime
import inspect
import pathlib
import pickle
import subprocess
import typing

import pytest

import harness
import python_package
import pyvmm
from test_evacuate import Host
from test_grpc import serve, tcp_target

postcopy = python_package.load()
messages = postcopy.messages
EVACUATE = pathlib.Path(__file__).parents[2] / "src/python/examples/evacuate.py"
DESTINATION = {"role": messages.ROLE_DESTINATION, "token": bytes(range(32)),
               "source_address": "127.0.0.1:9"}
# As many as a connection may have at a time (src/grpc/server.h).
STREAMS = 256
CLIENTS = (postcopy.Client, postcopy.AsyncClient)
needs_userfaultfd = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                       reason=str(pyvmm.can_userfault()))


def tls(identity, **options):
    return postcopy.Tls(identity.cert, identity.key, identity.ca, **options)


@pytest.fixture(params=["unix", "tcp"])
def reached(request, host):
    """How a daemon is reached."""
    daemon = serve(host, "destination")
    if request.param == "unix":
        return {"address": str(daemon.control_path)}
    return {"address": tcp_target(daemon), "tls": tls(host.pki.controller)}


@pytest.fixture
def client(host, reached):
    client = postcopy.Client(**reached)
    host.later(client.close)
    return client


def states(migrations):
    return [m.state for m in migrations]


def test_who_waits(client):
    made = client.prepare("vm7", limits=messages.Limits(streams=2), **DESTINATION)
    assert made.state == messages.STATE_PREPARED and made.destination.limits.streams == 2
    assert client.get("vm7").id == "vm7"
    assert [m.id for m in client.list(states=[messages.STATE_PREPARED]).migrations] == ["vm7"]
    watched = client.watch("vm7", interval=datetime.timedelta(milliseconds=50))
    assert next(watched).state == messages.STATE_PREPARED
    client.cancel("vm7")
    assert states(watched)[-1] == messages.STATE_CANCELLED
    assert client.delete("vm7").deleted == 1
    assert client.get_info().version


def test_asyncio(reached):
    async def life():
        async with postcopy.AsyncClient(**reached) as client:
            await client.prepare("vm7", **DESTINATION)
            watched = client.watch("vm7")
            seen = [await watched.__anext__()]
            await asyncio.gather(*(client.get("vm7") for _ in range(20)))
            await client.cancel("vm7")
            seen += [m async for m in watched]
            with pytest.raises(postcopy.InvalidField):
                await client.recover("vm7", source_address="x")
            with pytest.raises(postcopy.MigrationNotFound):
                [m async for m in client.watch("vm8")]
            return states(seen)
    seen = asyncio.run(life())
    assert (seen[0], seen[-1]) == (messages.STATE_PREPARED, messages.STATE_CANCELLED)


def test_a_refusal_has_the_name_of_its_reason(client):
    with pytest.raises(postcopy.MigrationNotFound) as caught:
        client.get("vm7")
    error = caught.value
    assert error.reason == "MIGRATION_NOT_FOUND" and error.code.name == "NOT_FOUND"
    assert str(error).startswith("%s: Get: MIGRATION_NOT_FOUND: " % client.address)
    with pytest.raises(postcopy.InvalidField) as caught:
        client.prepare("vm7", role=messages.ROLE_SOURCE, token=b"short")
    assert caught.value.metadata == {"field": "token"}
    client.prepare("vm7", **DESTINATION)
    with pytest.raises(postcopy.MigrationExists):
        client.prepare("vm7", **{**DESTINATION, "source_address": "127.0.0.1:10"})
    with pytest.raises(postcopy.WrongState) as caught:
        client.start("vm7")
    assert isinstance(caught.value, postcopy.Refused)
    with pytest.raises(postcopy.MigrationNotFound):
        list(client.watch("vm8"))
    # It goes from a process to another, as in a pool of them.
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is postcopy.WrongState and again.metadata == caught.value.metadata
    assert str(again) == str(caught.value)


def test_who_may_look_alone_is_told_so(host, pki):
    daemon = serve(host, "destination", "--control-read", "postcopy:stranger")
    with postcopy.Client(tcp_target(daemon), tls(pki.stranger)) as reader:
        assert reader.list().next_page_token == ""
        with pytest.raises(postcopy.Permission) as caught:
            reader.prepare("vm7", **DESTINATION)
    assert caught.value.metadata["role"] == "operator"


def test_a_reason_that_only_the_daemon_knows_is_a_refusal(host, client, monkeypatch):
    """A newer daemon's."""
    from postcopy import reasons
    monkeypatch.delitem(reasons.BY_NAME, "MIGRATION_NOT_FOUND")
    with pytest.raises(postcopy.Refused) as caught:
        client.get("vm7")
    assert type(caught.value) is postcopy.Refused
    assert caught.value.reason == "MIGRATION_NOT_FOUND"


def test_no_daemon_and_then_one(host):
    path = host.dir / "destination1.control"
    with postcopy.Client(path) as client:
        with pytest.raises(postcopy.Unavailable) as caught:
            client.get_info()
        assert str(path) in str(caught.value)
        daemon = host.daemon("destination")
        assert daemon.control_path == path
        # The library dials again by itself, after 2 s at most.
        harness.eventually(lambda: answers(client), "the same client reaches it")


def answers(client):
    try:
        return client.get_info()
    except postcopy.Unavailable:
        return None


def test_a_certificate_that_is_not_allowed(host, pki):
    daemon = serve(host, "destination")
    with postcopy.Client(tcp_target(daemon), tls(pki.stranger)) as client:
        with pytest.raises(postcopy.Unavailable):
            client.get_info()
    with postcopy.Client("127.0.0.1:" + tcp_target(daemon).rpartition(":")[2],
                         tls(pki.controller, server_name="localhost")) as client:
        assert client.get_info().version
    with pytest.raises(ValueError, match="tls="):
        postcopy.Client(tcp_target(daemon))


def test_a_call_that_takes_too_long(client):
    client.prepare("vm7", **DESTINATION)
    with pytest.raises(postcopy.NotInTime):
        list(client.watch("vm7", timeout=0.2))


def test_a_stream_that_is_left_is_ended(client):
    """Streams are few: one that nobody reads must not hold its place."""
    client.prepare("vm7", **DESTINATION)
    for _ in range(STREAMS):
        for migration in client.watch("vm7"):
            break
    assert client.get("vm7").state == messages.STATE_PREPARED


def test_both_clients_have_each_call_with_each_field():
    for service in messages.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            name = "".join("_" + c.lower() if c.isupper() else c for c in method.name)[1:]
            for kind in CLIENTS:
                call = getattr(kind, name)
                assert call.__doc__, name
                parameters = set(inspect.signature(call).parameters) - {"self", "timeout"}
                assert parameters == {field.name for field in method.input_type.fields}
                returned = typing.get_type_hints(call)["return"]
                answer = getattr(messages, method.output_type.name)
                assert returned is answer or typing.get_args(returned) == (answer,)
    assert "point of no return" in postcopy.Client.cancel.__doc__
    assert 'metadata "field" names it' in postcopy.InvalidField.__doc__.lower()
    reasons = {name[len("ERROR_REASON_"):] for name in messages.ErrorReason.keys()}
    from postcopy import reasons as classes
    assert set(classes.BY_NAME) == reasons - {"UNSPECIFIED"}


# The example.

def evacuate(hosts, *extra):
    return subprocess.Popen(
        ["/usr/bin/python3", "-u", EVACUATE, "--from", hosts.from_.control_path, "--to",
         ",".join(hosts.by_path), "--exec", "echo $POSTCOPY_ID $POSTCOPY_TO >%s" % hosts.wanted,
         *extra], env=python_package.environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(command, status):
    out, err = command.communicate(timeout=3 * harness.DEADLINE_S)
    assert command.returncode == status, out + err
    return out, err


def arrived(hosts):
    for thread in hosts.threads:
        thread.join(harness.DEADLINE_S)
    return {name: whole for name, (_, whole) in hosts.arrived.items()}


@needs_userfaultfd
def test_the_example_empties_a_host(host):
    ids = ["vm%d" % i for i in range(5)]
    hosts = Host(host, ids)
    command = evacuate(hosts, "--parallel", "2")
    hosts.start_wanted(len(ids))
    out, _ = ended(command, 0)
    assert "5 of 5 guests moved" in out
    assert arrived(hosts) == dict.fromkeys(ids, True)
    shares = [sum(daemon is to for daemon, _ in hosts.arrived.values()) for to in hosts.to]
    assert sorted(shares) == [2, 3]
    # Run again it finds nothing that is left to do.
    assert "0 of 0 guests moved" in ended(evacuate(hosts), 0)[0]


@needs_userfaultfd
def test_the_example_tries_another_target(host):
    """A VMM can't be started at the first."""
    hosts = Host(host, ["vm1"])
    first = next(iter(hosts.by_path))
    command = evacuate(hosts, "--exec", "[ $POSTCOPY_TO != %s ] && echo $POSTCOPY_ID $POSTCOPY_TO "
                       ">%s" % (first, hosts.wanted))
    hosts.start_wanted(1)
    out, _ = ended(command, 0)
    assert "is still here: --exec ended with status 1" in out
    assert arrived(hosts) == {"vm1": True} and hosts.arrived["vm1"][0] is hosts.to[1]


@needs_userfaultfd
def test_the_example_leaves_what_could_not_be_moved(host):
    hosts = Host(host, ["vm1"], targets=1)
    out, _ = ended(evacuate(hosts, "--attach-timeout", "1"), 1)
    assert "is still here: its VMM has not attached" in out and "0 of 1 guests moved" in out
    assert hosts.from_.state("vm1") == "attached"
    assert hosts.to[0].state("vm1") == "cancelled"


@needs_userfaultfd
def test_the_example_follows_a_daemon_that_is_started_again(host):
    """And does not try the guest elsewhere: it may run there."""
    from keeper import KeptDaemon
    hosts = Host(host, ["vm1"], kind=KeptDaemon)
    command = evacuate(hosts)
    name, path = hosts.lines.next(harness.time.monotonic() + harness.DEADLINE_S).split()
    target = hosts.by_path[path]
    # Slow enough to be killed amid it.
    target.call("SetLimits", id=name, bandwidth_bytes_per_s=65536)
    hosts.begin(hosts.live_at_destination, name, target)
    target.wait_for_state(name, "postcopy")
    target.crash_and_restart()
    target.call("SetLimits", id=name, bandwidth_bytes_per_s=0)
    out, _ = ended(command, 0)
    assert out.count("goes to") == 1 and "1 of 1 guests moved" in out
    assert arrived(hosts) == {"vm1": True}
