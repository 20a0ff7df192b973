# SPDX-License-Identifier: Apache-2.0
"""A client of the gRPC service, by Debian's grpcio; messages from the build's own descriptors.

    with Client("unix:/run/postcopyd/control.sock") as client:
        client.migrations("Get", id="vm7").state
"""
import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

import harness

MIGRATIONS = "postcopy.v1.Migrations"
HOST = "postcopy.v1.Host"
HEALTH = "grpc.health.v1.Health"
DETAILS = "grpc-status-details-bin"


class Messages:
    """All messages of proto/, as build/proto/control.desc describes them."""

    def __init__(self, path):
        self.pool = descriptor_pool.DescriptorPool()
        self.factory = message_factory.MessageFactory(self.pool)
        files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
        for file in files.file:
            self.pool.Add(file)

    def type(self, name):
        return self.factory.GetPrototype(self.pool.FindMessageTypeByName(name))

    def method(self, service, name):
        return self.pool.FindServiceByName(service).FindMethodByName(name)

    def enum(self, name):
        return self.pool.FindEnumTypeByName(name)


_messages = None


def messages():
    global _messages
    if not _messages:
        _messages = Messages(harness.BUILD / "proto/control.desc")
    return _messages


def message(name, /, **fields):
    return json_or_fields(messages().type(name)(), fields)


def json_or_fields(to, fields):
    """Fields by name: messages as dicts, enums by their names, bytes as bytes."""
    raw = {key: value for key, value in fields.items() if isinstance(value, bytes)}
    json_format.ParseDict({key: value for key, value in fields.items() if key not in raw}, to)
    for key, value in raw.items():
        setattr(to, key, value)
    return to


def state_name(migration):
    """ "postcopy" for STATE_POSTCOPY"""
    value = messages().enum("postcopy.v1.State").values_by_number[migration.state]
    return value.name.partition("_")[2].lower()


def error_info(error):
    """The google.rpc.ErrorInfo of an RpcError."""
    details = dict(error.trailing_metadata())[DETAILS]
    status = messages().type("google.rpc.Status").FromString(details)
    assert status.code == error.code().value[0] and status.message == error.details()
    info = messages().type("google.rpc.ErrorInfo")()
    assert status.details[0].Unpack(info)
    return info


def credentials(identity):
    """Mutual TLS with one of pki.py's identities."""
    return grpc.ssl_channel_credentials(identity.ca.read_bytes(), identity.key.read_bytes(),
                                        identity.cert.read_bytes())


class Client:
    """One channel. Methods are called by name, with the request's fields."""

    def __init__(self, target, identity=None, server_name=None, options=()):
        options = list(options) + [("grpc.enable_http_proxy", 0)]
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        if identity:
            self.channel = grpc.secure_channel(target, credentials(identity), options)
        else:
            self.channel = grpc.insecure_channel(target, options)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.channel.close()

    def call(self, service, method_name, /, request=None, timeout=None, **fields):
        """A unary method's answer, or a server stream's iterator of them."""
        method = messages().method(service, method_name)
        answer = messages().type(method.output_type.full_name)
        if request is None:
            request = message(method.input_type.full_name, **fields)
        kind = self.channel.unary_stream if method_streams(method) else self.channel.unary_unary
        stub = kind("/%s/%s" % (service, method_name), request_serializer=lambda m: m.SerializeToString(),
                    response_deserializer=answer.FromString)
        return stub(request, timeout=timeout or harness.DEADLINE_S)

    def migrations(self, method_name, /, **fields):
        return self.call(MIGRATIONS, method_name, **fields)

    def host(self, method_name, /, **fields):
        return self.call(HOST, method_name, **fields)


def method_streams(method):
    proto = descriptor_pb2.MethodDescriptorProto()
    method.CopyToProto(proto)
    return proto.server_streaming
