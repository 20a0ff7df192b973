# SPDX-License-Identifier: Apache-2.0
"""The gRPC service as a stock client sees it: grpcio, over the unix socket and over TCP with
mutual TLS."""
import grp
import os
import re
import subprocess
import sys
import threading

import grpc
import pytest

import harness
from control_client import HEALTH, HOST, MIGRATIONS, Client, error_info, message, messages, \
    state_name

TOKEN = bytes(range(32))
NOBODY = 65534
Code = grpc.StatusCode

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                               reason="/dev/kvm can't be opened: no vCPUs here")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="other users' processes need root")


def serve(host, role, *extra):
    """A daemon that also listens for gRPC on TCP."""
    return host.daemon(role, identity=host.pki.server,
                       extra=["--control-listen", "127.0.0.1:0",
                              "--control-allow", "postcopy:controller", *extra])


def tcp_target(daemon):
    port = re.search(r"gRPC over TCP on port (\d+)", daemon.log()).group(1)
    return "localhost:" + port


def connect(host, daemon, transport):
    if transport == "unix":
        client = Client("unix:%s" % daemon.control_path)
    else:
        client = Client(tcp_target(daemon), host.pki.controller)
    host.later(client.close)
    return client


@pytest.fixture(params=["unix", "tcp"])
def transport(request):
    return request.param


@pytest.fixture
def client(host, transport):
    return connect(host, serve(host, "destination"), transport)


@pytest.fixture
def local(host):
    return connect(host, serve(host, "destination"), "unix")


def prepare(client, migration_id="vm7", **fields):
    fields = {"role": "ROLE_DESTINATION", "token": TOKEN, "source_address": "127.0.0.1:9",
              **fields}
    return client.migrations("Prepare", id=migration_id, **fields)


def refusal(code, call, *args, **kwargs):
    with pytest.raises(grpc.RpcError) as caught:
        answer = call(*args, **kwargs)
        if hasattr(answer, "__next__"):
            list(answer)
    assert caught.value.code() == code, caught.value
    return caught.value


def raw(client, path, request, timeout=None):
    """A call of bytes, whatever they are."""
    return client.channel.unary_unary(path)(request, timeout=timeout or harness.DEADLINE_S)


# A migration.

@needs_kvm
def test_the_whole_life_of_a_migration(host, transport):
    source = serve(host, "source")
    destination = serve(host, "destination")
    at_source = connect(host, source, transport)
    at_destination = connect(host, destination, transport)
    migration = at_source.migrations("Prepare", id="vm7", role="ROLE_SOURCE", token=TOKEN)
    assert state_name(migration) == "prepared" and migration.HasField("source")
    prepare(at_destination, source_address=source.address, limits={"streams": 2})
    options = {"memory": "64M", "backend": "memfd", "vcpus": 1, "workload": "random",
               "write_percent": 30, "run_after_complete": 50}
    source_vmm = host.minivmm("source", source, "vm7", **options)
    destination_vmm = host.minivmm("destination", destination, "vm7", **options)
    source_vmm.wait_for_event("attached")
    destination_vmm.wait_for_event("attached")
    assert at_source.migrations("Get", id="vm7").vmm_pid == source_vmm.pid
    watch = at_destination.migrations("Watch", id="vm7", interval="0.050s")
    seen = [next(watch)]
    at_destination.migrations("Start", id="vm7", hold_switchover=True)
    # The source hears of it first.
    for shown in watch:
        seen.append(shown)
        if state_name(shown) == "warming" and at_source.migrations("Get", id="vm7").source.connected:
            break
    at_destination.migrations("Switchover", id="vm7")
    seen += list(watch)
    states = [state_name(m) for m in seen]
    assert states[0] == "attached" and states[-1] == "complete"
    assert {"warming", "postcopy"} <= set(states)
    check_destination(seen[-1], destination_vmm.pid)
    check_report(at_destination.migrations("GetReport", id="vm7"))
    source_vmm.wait_for_event("complete")
    served = list(at_source.migrations("Watch", id="vm7"))[-1]
    assert state_name(served) == "complete" and served.source.pages > 0
    result = destination_vmm.wait_for_event("result")
    assert result["pages_checked"] > 0 and result["pages_bad"] == 0
    assert TOKEN.hex() not in source.log() + destination.log()


def nanoseconds(duration):
    return duration.seconds * 10 ** 9 + duration.nanos


def check_destination(migration, vmm_pid):
    status = migration.destination
    assert migration.vmm_pid in (0, vmm_pid)
    assert migration.memory_bytes == 64 << 20 and migration.backend == "memfd"
    assert status.pages_present == status.pages_total == (64 << 20) // 4096
    parts = [nanoseconds(getattr(status.downtime, part))
             for part in ("pause", "send", "load", "resume")]
    assert sum(parts) == nanoseconds(status.downtime.total) > 0
    assert status.tls.startswith("TLSv1.3")
    assert status.limits.streams == 2 and status.limits.bulk and status.limits.prefetch
    assert status.limits.WhichOneof("optional_bandwidth") and not status.limits.bandwidth_bytes_per_s
    assert nanoseconds(status.elapsed) >= nanoseconds(status.downtime.total)
    assert migration.prepare_time.ToNanoseconds() <= status.resume_time.ToNanoseconds() \
        <= migration.state_time.ToNanoseconds()
    phases = ["queue", "request", "answer", "fill", "map"]
    if status.guest_stall_source != "daemon":
        phases = ["entry", *phases, "wakeup"]
    assert [phase.phase for phase in status.fault_phases] == phases
    assert not status.HasField("time_to_complete")


def check_report(report):
    assert report.migration.id == "vm7"
    assert report.timeline and report.timeline[-1].pages_present <= (64 << 20) // 4096
    assert list(report.phases) == ["queue", "request", "answer", "fill", "map"]
    latency = report.migration.destination.fault_latency
    assert sum(bucket.count for bucket in report.fault_histogram) == latency.count
    for dot in report.faults:
        assert len(dot.phase_ns) == 5 and sum(dot.phase_ns) <= dot.latency_ns
        assert dot.dominant_phase in report.phases
    latencies = [dot.latency_ns for dot in report.slow_faults]
    assert latencies and latencies == sorted(latencies, reverse=True)
    for dot in report.slow_faults:
        if dot.HasField("stall"):
            assert dot.stall.entry_ns + dot.stall.wakeup_ns <= dot.stall.total_ns
    stall = report.migration.destination.guest_stall
    assert sum(bucket.count for bucket in report.stall_histogram) == stall.count
    assert report.arrival and sum(cell.pages for cell in report.arrival) > 0


def test_watch_ends_after_the_last_state(client):
    prepare(client)
    watch = client.migrations("Watch", id="vm7", interval="3600s")
    assert state_name(next(watch)) == "prepared"
    client.migrations("Cancel", id="vm7")
    assert [state_name(m) for m in watch] == ["cancelled"]
    assert watch.code() == Code.OK
    assert [state_name(m) for m in client.migrations("Watch", id="vm7")] == ["cancelled"]


def test_watch_ends_with_its_deadline(client):
    prepare(client)
    refusal(Code.DEADLINE_EXCEEDED, client.call, MIGRATIONS, "Watch", id="vm7", timeout=0.2)
    assert state_name(client.migrations("Get", id="vm7")) == "prepared"


def test_watch_that_is_cancelled_is_forgotten(client):
    prepare(client)
    # More than there may be at a time, one after the other.
    for _ in range(1100):
        watch = client.migrations("Watch", id="vm7")
        next(watch)
        watch.cancel()
    assert client.host("GetInfo").migrations_active == 1


def test_streams_at_a_time_are_bounded(host):
    daemon = serve(host, "destination")
    clients = [Client("unix:%s" % daemon.control_path, options=[("grpc.use_local_subchannel_pool", 1)])
               for _ in range(5)]
    for each in clients:
        host.later(each.close)
    prepare(clients[0])
    watches = [clients[i % 5].migrations("Watch", id="vm7", interval="3600s") for i in range(1024)]
    for watch in watches:
        next(watch)
    error = refusal(Code.RESOURCE_EXHAUSTED, clients[0].migrations, "Watch", id="vm7")
    assert error_info(error).reason == "TOO_MANY"
    watches[0].cancel()
    harness.eventually(lambda: one_more(clients[0]), "room for one more")
    clients[0].migrations("Cancel", id="vm7")
    assert all(state_name(next(watch)) == "cancelled" for watch in watches[1:])


def one_more(client):
    watch = client.migrations("Watch", id="vm7")
    try:
        next(watch)
        watch.cancel()
        return True
    except grpc.RpcError:
        return False


def test_list_comes_in_pages(client):
    ids = ["vm%d" % i for i in range(5)]
    for migration_id in ids:
        prepare(client, migration_id)
    client.migrations("Cancel", id="vm3")
    got, token = [], ""
    while True:
        page = client.migrations("List", page_size=2, page_token=token)
        got += [m.id for m in page.migrations]
        token = page.next_page_token
        if not token:
            break
    assert got == ids[::-1]
    only = client.migrations("List", states=["STATE_CANCELLED"])
    assert [m.id for m in only.migrations] == ["vm3"]
    error = refusal(Code.INVALID_ARGUMENT, client.migrations, "List", page_token="zz")
    assert error_info(error).metadata["field"] == "page_token"


# Errors.

def test_errors_say_why_to_people_and_to_programs(client):
    error = refusal(Code.NOT_FOUND, client.migrations, "Get", id="vm7")
    assert error_info(error).domain == "postcopyd"
    assert error_info(error).reason == "MIGRATION_NOT_FOUND"
    error = refusal(Code.INVALID_ARGUMENT, prepare, client, source_address="nowhere")
    assert error_info(error).reason == "INVALID_FIELD"
    assert dict(error_info(error).metadata) == {"field": "source_address"}
    prepare(client)
    error = refusal(Code.FAILED_PRECONDITION, client.migrations, "Start", id="vm7")
    assert dict(error_info(error).metadata) == {"state": "prepared"}
    error = refusal(Code.ALREADY_EXISTS, prepare, client, source_address="127.0.0.1:10")
    assert error_info(error).reason == "MIGRATION_EXISTS"


def all_methods():
    names = [MIGRATIONS, HOST, HEALTH, "grpc.reflection.v1.ServerReflection",
             "grpc.reflection.v1alpha.ServerReflection"]
    return ["/%s/%s" % (service, method.name) for service in names
            for method in messages().pool.FindServiceByName(service).methods]


def test_garbage_is_refused_by_each_method(client):
    paths = all_methods()
    assert len(paths) == 24
    for path in paths:
        for garbage in (b"\x0a\xffx", b"\xff" * 100, b"\x0b\x0c", b"\x00", b"\x00\x00"):
            error = refusal(Code.INVALID_ARGUMENT, raw, client, path, garbage)
            assert error_info(error).reason == "INVALID_REQUEST", path
    # An id with a NUL in it, that must not pass for another's.
    prepare(client, "a")
    error = refusal(Code.INVALID_ARGUMENT, raw, client, "/postcopy.v1.Migrations/Get",
                    b"\x0a\x03a\x00b")
    assert error_info(error).metadata["field"] == "id"


def test_large_requests_and_unknown_methods(client):
    error = refusal(Code.RESOURCE_EXHAUSTED, raw, client, "/postcopy.v1.Migrations/Get",
                    b"x" * (4 << 20) + b"x")
    assert "4194304" in error.details()
    refusal(Code.RESOURCE_EXHAUSTED, raw, client, "/postcopy.v1.Migrations/Get", b"x" * 65537)
    error = refusal(Code.UNIMPLEMENTED, raw, client, "/postcopy.v1.Migrations/Fly", b"")
    assert "a newer postcopyd may have it" in error.details()
    refusal(Code.UNIMPLEMENTED, raw, client, "/postcopy.v2.Migrations/Get", b"")
    assert client.host("GetInfo").cpus > 0


# Who may call.

@pytest.mark.parametrize("who", ["stranger", "forged", "nameless", "source"])
def test_certificates_that_may_not_drive_the_daemon(host, who):
    daemon = serve(host, "destination")
    identity = getattr(host.pki, who)
    with Client(tcp_target(daemon), identity) as client:
        refusal(Code.UNAVAILABLE, client.host, "GetInfo")
    with Client(tcp_target(daemon), host.pki.controller) as client:
        assert client.host("GetInfo").cpus > 0


def test_no_certificate_no_call(host):
    daemon = serve(host, "destination")
    channel = grpc.secure_channel(tcp_target(daemon), grpc.ssl_channel_credentials(
        host.pki.ca.read_bytes()))
    host.later(channel.close)
    refusal(Code.UNAVAILABLE, channel.unary_unary("/postcopy.v1.Host/GetInfo"), b"",
            timeout=harness.DEADLINE_S)


CALL_GET_INFO = """
import grpc, sys
channel = grpc.insecure_channel("unix:" + sys.argv[1])
try:
    channel.unary_unary("/postcopy.v1.Host/GetInfo")(b"", timeout=20)
    print("OK")
except grpc.RpcError as error:
    print(error.code().name)
"""


def call_as(daemon, uid, gid, groups=()):
    """What a process of another user is told."""
    # By setpriv: Python itself would fork for that, with all of grpc's threads and locks.
    become = ["setpriv", "--reuid", str(uid), "--regid", str(gid)]
    become += ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    done = subprocess.run([*become, sys.executable, "-c", CALL_GET_INFO, daemon.control_path],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/",
                          timeout=3 * harness.DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_root
def test_users_and_groups_that_may_call(host):
    allowed, other = grp.getgrgid(4), grp.getgrgid(5)
    host.dir.chmod(0o755)
    daemon = host.daemon("destination", extra=["--control-group", allowed.gr_name])
    assert call_as(daemon, 0, 0) == "OK"
    assert call_as(daemon, NOBODY, NOBODY) == "UNAVAILABLE"
    assert call_as(daemon, NOBODY, other.gr_gid) == "UNAVAILABLE"
    assert call_as(daemon, NOBODY, allowed.gr_gid) == "OK"
    assert call_as(daemon, NOBODY, NOBODY, [other.gr_gid, allowed.gr_gid]) == "OK"


# Health, host, reflection.

def test_health(client):
    def check(service):
        return client.call(HEALTH, "Check", service=service).status

    for service in ("", MIGRATIONS, HOST):
        assert check(service) == 1
    error = refusal(Code.NOT_FOUND, check, "nobody")
    assert error_info(error).reason == "SERVICE_UNKNOWN"
    statuses = client.call(HEALTH, "List").statuses
    assert {name: value.status for name, value in statuses.items()} == \
        {"": 1, MIGRATIONS: 1, HOST: 1}
    watch = client.call(HEALTH, "Watch", service=MIGRATIONS)
    assert next(watch).status == 1
    unknown = client.call(HEALTH, "Watch", service="nobody")
    assert next(unknown).status == 3
    watch.cancel()
    unknown.cancel()


def test_host_says_what_it_can(host, client):
    answer = client.host("Check")
    assert answer.kernel == os.uname().release
    names = {capability.name for capability in answer.capabilities}
    assert {"userfaultfd", "memfd destination", "guest stalls by ebpf"} <= {name.lower() for name in names}, names
    assert all(capability.detail for capability in answer.capabilities)
    assert {"memfd", "guest_memfd"} <= {backend.name for backend in answer.backends}
    assert answer.can_migrate == any(backend.destination for backend in answer.backends)
    info = client.host("GetInfo")
    assert info.hostname == os.uname().nodename and info.cpus == os.cpu_count()
    assert re.match(r"127\.0\.0\.1:\d+$", info.pages_address) and not info.draining


def test_check_is_asked_by_many_at_once(local):
    answers = []

    def ask():
        answers.append(local.host("Check").can_migrate)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20 and len(set(answers)) == 1


def reflect(client, version, *questions):
    """Questions on one stream, each asked when the one before is answered."""
    service = "grpc.reflection.%s.ServerReflection" % version
    kind = "grpc.reflection.%s.ServerReflectionRe" % version
    stream = client.channel.stream_stream(
        "/%s/ServerReflectionInfo" % service, request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=messages().type(kind + "sponse").FromString)
    requests = [message(kind + "quest", **question) for question in questions]
    return list(stream(iter(requests), timeout=harness.DEADLINE_S))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(client, version):
    listed, by_symbol, by_name, absent, extensions = reflect(
        client, version, {"list_services": ""}, {"file_containing_symbol": MIGRATIONS},
        {"file_by_filename": "postcopy/v1/control.proto"}, {"file_by_filename": "nothing.proto"},
        {"all_extension_numbers_of_type": "postcopy.v1.Migration"})
    services = {service.name for service in listed.list_services_response.service}
    assert services == {MIGRATIONS, HOST, HEALTH, "grpc.reflection.v1.ServerReflection",
                        "grpc.reflection.v1alpha.ServerReflection"}
    assert by_symbol.file_descriptor_response == by_name.file_descriptor_response
    assert absent.error_response.error_code == Code.NOT_FOUND.value[0]
    assert extensions.all_extension_numbers_response.base_type_name == "postcopy.v1.Migration"
    check_descriptors(by_name.file_descriptor_response.file_descriptor_proto)


def check_descriptors(files):
    """They are all that a client needs to make the messages."""
    from google.protobuf import descriptor_pb2, descriptor_pool
    pool = descriptor_pool.DescriptorPool()
    found = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
    for file in sorted(found, key=lambda file: len(file.dependency)):
        pool.Add(file)
    assert pool.FindServiceByName(MIGRATIONS).FindMethodByName("Watch")
