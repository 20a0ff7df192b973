# SPDX-License-Identifier: Apache-2.0
"""Who sees whether a guest runs twice: by its own counters, whatever anybody says."""
import threading


class Witness(threading.Thread):
    INTERVAL_S = 0.005

    def __init__(self, source, destination):
        super().__init__(daemon=True)
        self.source, self.destination = source, destination
        self.arrived_from = None  # the source's counters when the destination was ahead of them
        self.ran_on = False
        self.stopping = threading.Event()
        self.start()

    def _look(self):
        there, here = self.source.progress(), self.destination.progress()
        if self.arrived_from:
            self.ran_on |= there != self.arrived_from
        elif any(now > then for now, then in zip(here, there)):
            # Read again: the source may have gone on between the two.
            there = self.source.progress()
            if any(now > then for now, then in zip(here, there)):
                self.arrived_from = there

    def run(self):
        while not self.stopping.wait(self.INTERVAL_S):
            self._look()

    def close(self):
        self.stopping.set()
        self.join()

    def check(self):
        """The guest runs at the destination, and has not at the source since."""
        self.close()
        assert self.arrived_from, "the guest has not run at the destination"
        assert not self.ran_on, "the guest has run at both sides"
