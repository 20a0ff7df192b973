# SPDX-License-Identifier: Apache-2.0
"""How much is tried, and what the tests measured, for the summary."""
import os

POINTS = int(os.environ.get("POSTCOPYD_CHAOS_POINTS", "2"))
# Kind of fault -> seconds until all went on.
recoveries = {}
