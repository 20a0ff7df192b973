# SPDX-License-Identifier: Apache-2.0
"""A token is in nobody's memory for longer than it is of use."""
import os
import pathlib
import re
import subprocess

import grpc
import pytest

import harness
from control_client import Client
from keeper import KeptDaemon
from test_grpc import tcp_target

HERE = pathlib.Path(__file__).parent
needs_release = pytest.mark.skipif(harness.sanitizer() != "",
                                   reason="a sanitizer keeps freed memory in quarantine")


def places(pid, secret):
    """Writable anonymous memory where the secret, or a half of it, is found."""
    found = []
    parts = secret[:16], secret[16:]
    with open("/proc/%d/mem" % pid, "rb", buffering=0) as memory:
        for line in pathlib.Path("/proc/%d/maps" % pid).read_text().splitlines():
            bounds, mode, _, _, inode, *name = line.split(maxsplit=5)
            if not mode.startswith("rw") or (inode != "0" and "memfd:" not in line):
                continue
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            try:
                content = os.pread(memory.fileno(), end - start, start)
            except OSError:
                continue
            found += ["%x %s" % (start + at.start(), name) for part in parts
                      for at in re.finditer(re.escape(part), content)]
    return found


@needs_release
@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip], ids=["plain", "gzip"])
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_token_is_wiped_once_its_migration_is_deleted(host, pki, transport, compression):
    """It stayed in freed buffers: of the request, HTTP/2, TLS, gzip and protobuf; a core dump, or
    whoever reads a page of the heap, had it."""
    daemon = host.daemon("source", identity=pki.server, kind=KeptDaemon, extra=[
        "--control-listen", "127.0.0.1:0", "--control-allow", "postcopy:controller"])
    secret = os.urandom(32)
    target = "unix:%s" % daemon.control_path if transport == "unix" else tcp_target(daemon)
    options = [("grpc.default_compression_algorithm", compression.value)] if compression else []
    with Client(target, None if transport == "unix" else pki.controller,
                options=options) as client:
        client.migrations("Prepare", id="vm1", role="ROLE_SOURCE", token=secret)
        # It is looked for in the right places.
        assert places(daemon.pid, secret)
        client.migrations("Cancel", id="vm1")
        assert client.migrations("Delete", id="vm1").deleted == 1
        assert not places(daemon.pid, secret)


@pytest.fixture(scope="module")
def scanner(tmp_path_factory):
    library = tmp_path_factory.mktemp("scan") / "memory-scan.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, HERE / "memory-scan.c"],
                   check=True)
    return library


@needs_release
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_postcopyctl_wipes_the_token(host, pki, scanner, transport):
    daemon = host.daemon("source", identity=pki.server, extra=[
        "--control-listen", "127.0.0.1:0", "--control-allow", "postcopy:controller"])
    secret = os.urandom(32)
    token, report = host.dir / "token", host.dir / "report"
    token.write_text(secret.hex() + "\n")
    whom = ["--control", daemon.control_path]
    if transport == "tcp":
        identity = pki.controller
        whom = ["--control", tcp_target(daemon), "--cert", identity.cert, "--key", identity.key,
                "--ca", identity.ca]
    subprocess.run([harness.BUILD / "src/ctl/postcopyctl", "prepare", "vm1", "--role", "source",
                    "--token-file", token, *whom], check=True, stdin=subprocess.DEVNULL,
                   capture_output=True, timeout=harness.DEADLINE_S,
                   env={**os.environ, "LD_PRELOAD": scanner, "SCAN_REPORT": report,
                        "SCAN_SECRET": bytes(byte ^ 0xff for byte in secret).hex()})
    assert report.read_text() == "done\n"
