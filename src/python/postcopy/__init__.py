# SPDX-License-Identifier: Apache-2.0
"""The control plane of postcopyd.

    import postcopy
    from postcopy import messages

    with postcopy.Client("/run/postcopyd/control.sock") as daemon:
        for migration in daemon.watch("vm7"):
            print(messages.State.Name(migration.state))

Client waits for its answers, AsyncClient is awaited; both have a method for each call of control.proto,
which takes the fields of its request and returns its answer. What a call does its docstring says.
A call that fails raises an Error (postcopy.errors), by the name of its reason.
"""
import secrets

from .calls import AsyncClient, Client
from .channel import Tls
from .errors import Error, Interrupted, NotInTime, Refused, Unavailable
from .reasons import *
from .v1 import control_pb2 as messages

# States that a migration does not leave.
FINAL = frozenset((messages.STATE_COMPLETE, messages.STATE_FAILED, messages.STATE_CANCELLED))


def new_token() -> bytes:
    """The secret of one migration, for Prepare at both its daemons."""
    return secrets.token_bytes(32)
