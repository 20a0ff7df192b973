# SPDX-License-Identifier: Apache-2.0
"""The gRPC service through a second implementation: grpc-js, on node's own HTTP/2."""
import json
import pathlib
import shutil
import subprocess

import pytest

import harness
from test_grpc import serve, tcp_target

ROOT = pathlib.Path(__file__).parents[2]
CLIENT = ROOT / "tests/grpc-js/client.js"


@pytest.fixture(scope="session")
def modules():
    """grpc-js, as tests/grpc-js/package-lock.json has it; kept in the build directory."""
    for program in ("node", "npm"):
        if not shutil.which(program):
            pytest.skip("%s is not installed" % program)
    directory = harness.BUILD / "tests/grpc-js"
    lock = CLIENT.with_name("package-lock.json")
    done = directory / "installed.json"
    if not done.exists() or done.read_bytes() != lock.read_bytes():
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(CLIENT.with_name(name), directory)
        try:
            subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                           cwd=directory, stdin=subprocess.DEVNULL, check=True, timeout=120,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip("npm can't fetch grpc-js: %s" % (error.output or b"").decode()[-200:])
        shutil.copy(lock, done)
    return directory


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_unary_and_streams(host, modules, transport):
    daemon = serve(host, "destination")
    command = ["node", str(CLIENT), str(ROOT / "proto")]
    if transport == "unix":
        command.append("unix:%s" % daemon.control_path)
    else:
        identity = host.pki.controller
        command += [tcp_target(daemon), identity.ca, identity.cert, identity.key]
    done = subprocess.run(command, cwd=modules, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=3 * harness.DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["states"][-1] == "STATE_CANCELLED"
