# SPDX-License-Identifier: Apache-2.0
"""docs/security.md: its "Try it by hand", run as printed; and each test that it names is there."""
import os
import pathlib
import re
import subprocess

import pytest

import harness
import pyvmm
from test_readme import WAIT_FOR_SOCKETS, blocks, free_port

ROOT = pathlib.Path(__file__).parents[2]
SECURITY = (ROOT / "docs/security.md").read_text()

needs_userfaultfd = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                       reason=str(pyvmm.can_userfault()))


@needs_userfaultfd
def test_try_it_by_hand(tmp_path):
    start, impostor, blocking, trickling = blocks("Try it by hand", SECURITY)
    daemons, prepare = start.split("openssl rand")
    script = ("set -e\ntrap 'kill $(jobs -p)' EXIT\n" + daemons + WAIT_FOR_SOCKETS + "openssl rand" +
              prepare + impostor + blocking + trickling)
    # Its own directory and a port that is free: all else is as printed.
    for printed, here in (("/run/pc", tmp_path), ("7777", free_port()),
                          ("tests/make-certs", ROOT / "tests/make-certs"),
                          ("PYTHONPATH=tests/integration", "PYTHONPATH=%s" % (ROOT / "tests/integration"))):
        script = script.replace(printed, str(here))
    path = ":".join(str(harness.BUILD / "src" / name) for name in ("postcopyd", "ctl"))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, stdin=subprocess.DEVNULL,
                          env={**os.environ, "PATH": path + ":/usr/bin:" + os.environ["PATH"],
                               "POSTCOPYD_BUILD": str(harness.BUILD)},
                          capture_output=True, text=True, timeout=3 * harness.DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is no userfaultfd" in done.stdout
    # Started, and asked for after that.
    assert done.stdout.count("vm7: destination, ") == 3, done.stdout + done.stderr
    assert 4 < float(re.search(r"sent away after ([\d.]+) s", done.stdout).group(1)) < 10


def test_tests_that_it_names_are_there():
    sources = "\n".join(path.read_text() for kind in ("*.py", "*.c")
                        for path in (ROOT / "tests").rglob(kind))
    names = re.findall(r"`(?:[\w.]+: )?(test_\w+)`", SECURITY)
    assert len(names) > 30
    assert [name for name in names if not re.search(r"\b%s\b" % name, sources)] == []
    for name in re.findall(r"`(test_\w+\.py)", SECURITY):
        assert (ROOT / "tests/integration" / name).exists(), name
    for name in re.findall(r"`(test-[\w-]+)`", SECURITY):
        assert (ROOT / "tests/unit" / (name + ".c")).exists(), name
