# SPDX-License-Identifier: Apache-2.0
"""How a daemon is reached, and how a call is made: what Client and AsyncClient stand on."""
from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
import typing

import grpc
import grpc.aio
from google.protobuf import duration_pb2

from . import errors

CONTROL = "/run/postcopyd/control.sock"
TIMEOUT_S = 30.0
OPTIONS = [
    # Hosts are reached as they are.
    ("grpc.enable_http_proxy", 0),
    # A daemon that is started again is found soon: grpcio would wait for up to two minutes.
    ("grpc.max_reconnect_backoff_ms", 2000),
]


@dataclasses.dataclass(frozen=True)
class Tls:
    """Files: our certificate and key, and the authority that the daemon's certificate is of.

    The daemon's certificate must have the name or the address that is dialled, as DNS name or IP;
    where it has another DNS name that is @server_name.
    """

    cert: typing.Union[str, os.PathLike[str]]
    key: typing.Union[str, os.PathLike[str]]
    ca: typing.Union[str, os.PathLike[str]]
    server_name: typing.Optional[str] = None

    def credentials(self) -> grpc.ChannelCredentials:
        ca, key, cert = (pathlib.Path(path).read_bytes() for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def options(self) -> list:
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []


def duration(value: typing.Optional[datetime.timedelta]) -> typing.Optional[duration_pb2.Duration]:
    if value is None:
        return None
    message = duration_pb2.Duration()
    message.FromTimedelta(value)
    return message


def dial(library, address: str, tls: typing.Optional[Tls]):
    """@library: grpc or grpc.aio. Nothing is connected before the first call."""
    if address.startswith("/"):
        address = "unix:" + address
    if address.startswith("unix:"):
        return library.insecure_channel(address, OPTIONS)
    if tls is None:
        raise ValueError("%s: a daemon is reached over TCP by tls=Tls(cert, key, ca) alone" % address)
    return library.secure_channel(address, tls.credentials(), OPTIONS + tls.options())


class Base:
    """What both have."""

    def __init__(self, library, address, tls, timeout):
        self.address = str(address)
        self.timeout = timeout
        self._channel = dial(library, self.address, tls)

    def _stub(self, kind, method, answer):
        return kind("/" + method, request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=answer.FromString)


class Channel(Base):
    """To one daemon. @timeout: seconds that a call may take; a stream ends by itself."""

    def __init__(self, address: typing.Union[str, os.PathLike[str]] = CONTROL,
                 tls: typing.Optional[Tls] = None, timeout: float = TIMEOUT_S):
        super().__init__(grpc, address, tls, timeout)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self) -> None:
        self._channel.close()

    def _unary(self, method, request, answer, timeout):
        stub = self._stub(self._channel.unary_unary, method, answer)
        try:
            return stub(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise errors.from_rpc(self.address, method, error) from None

    def _stream(self, method, request, answer, timeout):
        call = self._stub(self._channel.unary_stream, method, answer)(request, timeout=timeout)
        try:
            yield from call
        except grpc.RpcError as error:
            raise errors.from_rpc(self.address, method, error) from None
        finally:
            # Who has seen enough leaves the loop: the daemon hears of it.
            call.cancel()


class AsyncChannel(Base):
    """To one daemon, for asyncio. @timeout: as Channel's."""

    def __init__(self, address: typing.Union[str, os.PathLike[str]] = CONTROL,
                 tls: typing.Optional[Tls] = None, timeout: float = TIMEOUT_S):
        super().__init__(grpc.aio, address, tls, timeout)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def _unary(self, method, request, answer, timeout):
        stub = self._stub(self._channel.unary_unary, method, answer)
        try:
            return await stub(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise errors.from_rpc(self.address, method, error) from None

    async def _stream(self, method, request, answer, timeout):
        call = self._stub(self._channel.unary_stream, method, answer)(request, timeout=timeout)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise errors.from_rpc(self.address, method, error) from None
        finally:
            call.cancel()
