# SPDX-License-Identifier: Apache-2.0
"""What the tests measured, for the summary: kind of fault -> seconds until all went on."""
recoveries = {}
