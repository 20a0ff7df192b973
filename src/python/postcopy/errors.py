# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a call.

Error
    Refused         the daemon has said no; a class for each reason (reasons.py) below it
    Unavailable     no daemon there, or it does not take us; the same call may succeed later
    NotInTime       no answer within the timeout: it may have been done, or not
    Interrupted     the call was given up at this end

Every call is idempotent by the migration's id, so one that was Unavailable or NotInTime is made again.
"""
from __future__ import annotations

import typing

import grpc

from . import status_pb2

DETAILS = "grpc-status-details-bin"
DOMAIN = "postcopyd"
ERROR_INFO = "/google.rpc.ErrorInfo"


class Error(Exception):
    """A call that failed: which, at which daemon, and why."""

    def __init__(self, address: str, method: str, code: grpc.StatusCode, message: str,
                 reason: str = "", metadata: typing.Optional[typing.Mapping[str, str]] = None):
        self.address = address
        self.method = method  # "postcopy.v1.Migrations/Start"
        self.code = code
        self.message = message  # for a person
        self.reason = reason  # of ErrorReason, without its prefix; empty: the daemon gave none
        self.metadata = dict(metadata or {})
        super().__init__("%s: %s: %s: %s" % (address, method.rpartition("/")[2],
                                             reason or code.name, message))

    def __reduce__(self):
        return type(self), (self.address, self.method, self.code, self.message, self.reason,
                            self.metadata)


class Refused(Error):
    """The daemon has said no."""


class Unavailable(Error):
    """There is no daemon, or it does not take our certificate."""


class NotInTime(Error):
    """No answer within the timeout."""


class Interrupted(Error):
    """Given up at this end."""


BY_CODE = {grpc.StatusCode.UNAVAILABLE: Unavailable,
           grpc.StatusCode.DEADLINE_EXCEEDED: NotInTime,
           grpc.StatusCode.CANCELLED: Interrupted}


def error_info(error: grpc.RpcError) -> status_pb2.ErrorInfo:
    """What the daemon has sent beside the text; empty where it has not."""
    for key, value in error.trailing_metadata() or ():
        if key != DETAILS:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.type_url.endswith(ERROR_INFO):
                info = status_pb2.ErrorInfo.FromString(detail.value)
                if info.domain == DOMAIN:
                    return info
    return status_pb2.ErrorInfo()


def from_rpc(address: str, method: str, error: grpc.RpcError) -> Error:
    """grpcio's error by its name; a reason of a newer daemon is Refused, and has its name in .reason."""
    from . import reasons  # which derives from what is here

    info = error_info(error)
    if info.reason:
        kind = reasons.BY_NAME.get(info.reason, Refused)
    else:
        kind = BY_CODE.get(error.code(), Refused)
    return kind(address, method, error.code(), error.details() or "", info.reason, info.metadata)
