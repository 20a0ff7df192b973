# SPDX-License-Identifier: Apache-2.0
"""bash completion of postcopyctl, in a real bash."""
import os
import pathlib
import pty
import select
import subprocess

import pytest

import harness
from harness import TOKEN

COMPLETION = pathlib.Path(__file__).parents[2] / "completions/postcopyctl"
CTL = harness.BUILD / "src/ctl/postcopyctl"
ENV = {**os.environ, "PATH": "%s:%s" % (CTL.parent, os.environ["PATH"])}


def complete(*words):
    """What bash offers for the last word, which may be empty."""
    script = """source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_postcopyctl "$1" "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(["bash", "--norc", "-c", script, "bash", COMPLETION, "postcopyctl",
                           *map(str, words)], env=ENV, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=harness.DEADLINE_S)
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("words, offered", [
    (("sta",), {"start", "status"}),
    (("--j",), {"--json"}),
    (("prepare", "vm7", "--token"), {"--token", "--token-file"}),
    (("prepare", "vm7", "--role", ""), {"source", "destination"}),
    (("prepare", "vm7", "--role", "=", "d"), {"destination"}),
    (("prepare", "vm7", "--map", ""), {"auto", "eager", "lazy"}),
    (("bench", "--backend", "h"), {"hugetlb", "hugetlb-1g"}),
    (("bench", "--workload", ""), {"sequential", "random", "hotcold", "stride", "idle"}),
    (("bench", "--vcpus", ""), set()),
    (("bench", ""), set()),
    (("nonsense", ""), set()),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_words_are_those_of_the_help(words, offered):
    assert complete(*words) == offered


def test_every_command_is_offered():
    text = subprocess.run([CTL, "--help"], capture_output=True, text=True, check=True).stdout
    named = {line.split()[0] for line in text.splitlines() if line[:2] == "  " and line[2:3].isalpha()}
    assert {"check", "prepare", "bench"} <= named
    assert complete("") == named


def test_files_are_offered_for_files(tmp_path):
    (tmp_path / "token").touch()
    assert complete("prepare", "vm7", "--token-file", "%s/t" % tmp_path) == {str(tmp_path / "token")}


def test_migrations_are_asked_of_the_daemon_that_is_named(host):
    daemon = host.daemon("source")
    for name in ("vm7", "vm8", "other"):
        daemon.prepare_source(name)
    assert complete("--control", daemon.control_path, "status", "") == {"vm7", "vm8", "other"}
    assert complete("--control", "=", daemon.control_path, "cancel", "vm") == {"vm7", "vm8"}
    assert complete("status", "--control", daemon.control_path, "vm8", "") == set()
    assert complete("--control", host.dir / "absent", "status", "") == set()


def test_a_person_presses_tab(host):
    daemon = host.daemon("source")
    daemon.prepare_source("web-frontend")
    pid, terminal = pty.fork()
    if not pid:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"],
                   {**ENV, "INPUTRC": "/dev/null", "TERM": "dumb"})
    host.later(lambda: os.waitpid(pid, 0))
    host.later(lambda: os.close(terminal))
    os.write(terminal, b"source %s\n" % bytes(COMPLETION))
    os.write(terminal, b"postcopyctl --control %s stat\tweb\t\nexit\n" % bytes(daemon.control_path))
    said = b""
    while b"web-frontend: source, prepared" not in said:
        ready, _, _ = select.select([terminal], [], [], harness.DEADLINE_S)
        try:
            assert ready
            said += os.read(terminal, 4096)
        except (AssertionError, OSError):
            pytest.fail("bash went no further: " + said.decode())
