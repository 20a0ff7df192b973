# SPDX-License-Identifier: Apache-2.0
"""The abuse suite stands on what the integration tests stand on."""
import importlib.util
import os
import pathlib
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

SECONDS = int(os.environ.get("POSTCOPYD_ABUSE_SECONDS", "300"))
report_lines = []


def pytest_addoption(parser):
    parser.addoption("--abuse-seconds", type=int, default=SECONDS,
                     help="how long the abuse lasts (POSTCOPYD_ABUSE_SECONDS, else 300)")


def pytest_collection_modifyitems(config, items):
    """A test's usual deadline is shorter than this one lasts."""
    lasts = config.getoption("--abuse-seconds")
    for item in items:
        item.add_marker(pytest.mark.timeout(2 * lasts + 300))


@pytest.fixture
def seconds(request):
    return request.config.getoption("--abuse-seconds", SECONDS)


@pytest.fixture
def tell():
    """Puts a line into the report at the end."""
    return report_lines.append


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("a guest among the hostile")
    for line in report_lines:
        terminalreporter.write_line(line)
