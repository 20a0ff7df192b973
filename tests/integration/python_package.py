# SPDX-License-Identifier: Apache-2.0
"""The package postcopy, from the build."""
import os
import sys

import pytest

import harness

WHERE = harness.BUILD / "src/python"


def need():
    """Skips the test, or all of the file, where the build has none."""
    if not (WHERE / "postcopy/calls.py").exists():
        pytest.skip("the Python package was not built: python3-protobuf was missing",
                    allow_module_level=True)


def load():
    need()
    if str(WHERE) not in sys.path:
        sys.path.insert(0, str(WHERE))
    import postcopy
    return postcopy


def environment():
    """Of a program that uses it."""
    return {**os.environ, "PYTHONPATH": str(WHERE), "PYTHONDONTWRITEBYTECODE": "1"}
