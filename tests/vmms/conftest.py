# SPDX-License-Identifier: Apache-2.0
"""Real VMMs stand on what the integration tests stand on."""
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

import debian  # noqa: E402
import qemu  # noqa: E402


@pytest.fixture
def guest_of(host):
    """Makes a Guest; what this host lacks for it is the reason of a skip."""
    def make(**options):
        try:
            return qemu.Guest(host, **options)
        except (debian.Unavailable, qemu.Missing) as why:
            pytest.skip(str(why))
    return make
