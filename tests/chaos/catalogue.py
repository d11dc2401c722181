"""All faults, and one round: traffic, a fault, calm, every promise."""

import random
import time
from collections.abc import Iterator

from tests.chaos import faults, store
from tests.chaos.faults import Fault
from tests.chaos.ledger import Ledger
from tests.chaos.promises import calm_down, check
from tests.chaos.stack import Stack
from tests.chaos.traffic import Traffic
from tests.chaos.watcher import Watcher

FAULTS: tuple[Fault, ...] = (
    faults.kill_training,
    faults.kill_worker,
    faults.stop_worker,
    faults.kill_api,
    faults.stop_postgres,
    faults.stop_postgres_while_publishing,
    faults.freeze_postgres,
    faults.empty_valkey,
    faults.forget,
    faults.redis_away,
    faults.cut_off_worker,
    faults.freeze_worker,
    faults.send_twice,
    store.fill_store,
    store.protect_store,
    store.spoil_next,
    store.spoil_live,
)

QUIET: tuple[Fault, ...] = (faults.forget,)
"""Caused after the traffic, when no job ends that would mend it by the way."""
TRAFFIC_SECONDS = 3.0


def possible(stack: Stack) -> list[Fault]:
    """The faults that this machine can cause; a seed draws the same where as many are."""
    return [fault for fault in FAULTS if fault not in store.NEED_A_MOUNT or stack.is_mounted]


class Round:
    """A stack's rounds, one after the other, with one ledger of all of them."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self._stack = stack
        self._seed = seed
        self._number = 0
        self.ledger = Ledger()

    def play(self, fault: Fault, **how: object) -> str:
        """Cause a fault under traffic, wait until all is calm, and check every promise; answers a line."""
        self._number += 1
        before = self.ledger.counts["acknowledged"]
        name = f"r{self._number}"
        start = time.monotonic()
        rng = random.Random(f"{self._seed}/{name}")
        with Watcher(self._stack, self.ledger):
            with Traffic(self._stack.urls, self.ledger, name, self._seed):
                if fault in QUIET:
                    time.sleep(TRAFFIC_SECONDS)
                else:
                    fault(self._stack, rng, **how)
            calm_down(self._stack)
            if fault in QUIET:
                fault(self._stack, rng, **how)
                calm_down(self._stack)
        check(self._stack, self.ledger)
        assert self.ledger.counts["acknowledged"] > before, "no traffic at all"
        return f"{fault.__name__} {time.monotonic() - start:.0f} s {self.ledger.counts}"


def play_random(stack: Stack, seed: int, count: int) -> Iterator[str]:
    """So many faults, drawn by the seed; yields a line for each."""
    rng, played = random.Random(seed), Round(stack, seed)
    for _ in range(count):
        yield played.play(rng.choice(possible(stack)))
