# SPDX-License-Identifier: Apache-2.0
"""The static probes: that the binary has those that the documentation names, and no others."""
import json
import pathlib
import re
import subprocess

import pytest

import harness

TRACING = pathlib.Path(__file__).resolve().parents[2] / "docs/tracing.md"
COLUMNS = 6  # of the documentation's table: name, when, four arguments


def notes():
    """Name to number of arguments, from the ELF notes that bpftrace reads."""
    done = subprocess.run(["readelf", "-n", "-W", str(harness.BUILD / "src/postcopyd/postcopyd")],
                          capture_output=True, text=True, check=True)
    found = re.findall(r"Provider: postcopyd\s+Name: (\w+)\s+Location:.*\s+Arguments: (.*)",
                       done.stdout)
    return {name: len(arguments.split()) for name, arguments in found}


@pytest.fixture(scope="module")
def probes():
    options = json.loads((harness.BUILD / "meson-info/intro-buildoptions.json").read_text())
    wanted = next(option["value"] for option in options if option["name"] == "usdt")
    include = pathlib.Path("/usr/include")
    present = any([*include.glob("sys/sdt.h"), *include.glob("*/sys/sdt.h")])
    if wanted == "disabled" or not present:
        pytest.skip("built without static probes: %s" % (
            "by option" if wanted == "disabled" else "no sys/sdt.h (systemtap-sdt-dev)"))
    return notes()


def documented():
    """Name to number of arguments, from the table of the documentation."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", TRACING.read_text(), re.MULTILINE)
    cells = {name: rest.split("|") for name, rest in rows}
    return {name: sum(bool(cell.strip()) for cell in row[1:])
            for name, row in cells.items() if len(row) == COLUMNS - 1}


def test_binary_has_the_probes_that_are_documented(probes):
    assert probes == documented()
    assert len(probes) == 7


def test_each_probe_has_its_one_liner(probes):
    lines = re.findall(r"^    (bpftrace -e .*)$", TRACING.read_text(), re.MULTILINE)
    used = re.findall(r"usdt:\./postcopyd:postcopyd:(\w+)", "\n".join(lines))
    assert set(used) == set(probes)
    assert len(lines) == len(probes)
