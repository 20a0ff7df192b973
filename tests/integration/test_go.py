# SPDX-License-Identifier: Apache-2.0
"""The Go module of the .proto, made as docs/control-plane.md has it."""
import pathlib
import shutil
import subprocess

import pytest

import harness
from test_readme import blocks

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/control-plane.md").read_text()


def test_the_command_makes_the_module(tmp_path):
    for program in ("protoc-gen-go", "protoc-gen-go-grpc"):
        if not shutil.which(program):
            pytest.skip("%s is not installed" % program)
    make, use = blocks("Go", DOCUMENT)
    subprocess.run(["bash", "-ec", make.replace("=proto ", "=%s/proto " % ROOT)], cwd=tmp_path,
                   stdin=subprocess.DEVNULL, check=True, timeout=harness.DEADLINE_S)
    module = tmp_path / "postcopyd-go"
    name = (module / "go.mod").read_text().split()[1]
    package, path = use.split()[1], use.split()[2].strip('"')
    # What is imported is the module's name and the place below it.
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.go"))
    place = "postcopyd-go" + path[len(name):]
    assert path.startswith(name) and files == [place + "/control.pb.go", place + "/control_grpc.pb.go"]
    messages, client = ((tmp_path / file).read_text() for file in files)
    assert "package %s\n" % package in messages and "package %s\n" % package in client
    assert "type Migration struct" in messages and "type MigrationsClient interface" in client
