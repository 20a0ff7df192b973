# SPDX-License-Identifier: Apache-2.0
"""Chaos stands on what the integration tests stand on."""
import importlib.util
import os
import pathlib
import random
import sys

import pytest

INTEGRATION = pathlib.Path(__file__).resolve().parent.parent / "integration"
sys.path.insert(0, str(INTEGRATION))
# It has this file's name: loaded by another.
spec = importlib.util.spec_from_file_location("integration_conftest", INTEGRATION / "conftest.py")
integration = importlib.util.module_from_spec(spec)
spec.loader.exec_module(integration)
host, pki = integration.host, integration.pki
pytest_runtest_makereport = integration.pytest_runtest_makereport

from link import Link  # noqa: E402
from recoveries import POINTS, recoveries  # noqa: E402

SEED = int(os.environ.get("POSTCOPYD_CHAOS_SEED", str(random.SystemRandom().randrange(1 << 32))))


def pytest_generate_tests(metafunc):
    """Each kind of fault at POINTS points; a point's seed is in its test's name."""
    if "seed" in metafunc.fixturenames:
        rng = random.Random("%s %d" % (metafunc.function.__name__, SEED))
        metafunc.parametrize("seed", [rng.randrange(1 << 32) for _ in range(POINTS)])


def pytest_report_header(config):
    return "chaos: POSTCOPYD_CHAOS_SEED=%d, %d points each" % (SEED, POINTS)


@pytest.fixture
def link():
    link = Link()
    yield link
    link.close()


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))]


def pytest_terminal_summary(terminalreporter):
    """From the fault's end to the guest's memory going on."""
    terminalreporter.section("from the fault to going on, s (POSTCOPYD_CHAOS_SEED=%d)" % SEED)
    for kind, seconds in sorted(recoveries.items()):
        terminalreporter.write_line("%-40s %2d points   p50 %6.2f   max %6.2f" % (
            kind, len(seconds), quantile(seconds, 0.5), max(seconds)))
