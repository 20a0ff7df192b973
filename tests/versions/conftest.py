# SPDX-License-Identifier: Apache-2.0
"""Two versions of everything stand on what the integration tests stand on."""
import importlib.util
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

import harness  # noqa: E402
import previous  # noqa: E402


def pytest_sessionstart(session):
    """Before any test: it takes longer than a test may where others use the host's cores."""
    try:
        session.config.previous = previous.build()
    except previous.Missing as missing:
        session.config.previous = missing


@pytest.fixture
def builds(pytestconfig):
    """Where the programs of each version are."""
    if isinstance(pytestconfig.previous, previous.Missing):
        pytest.skip(str(pytestconfig.previous))
    return {"N": harness.BUILD, "N-1": pytestconfig.previous}
