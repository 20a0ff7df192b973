# SPDX-License-Identifier: Apache-2.0
import pytest

import harness
from pki import Pki

LOG_TAIL = 6000


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def host(request, pki):
    host = harness.Host(pki)
    request.node.host = host
    yield host
    problems = host.close()
    assert not problems, "\n".join(problems)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Puts the logs of all processes of a failed test beside its failure."""
    outcome = yield
    report = outcome.get_result()
    if not report.failed:
        return
    host = getattr(item, "host", None)
    if not host:
        return
    for name, log in host.final_logs if call.when == "teardown" else host.logs():
        report.sections.append(("log of " + name, log[-LOG_TAIL:]))
