"""One stack for all faults of a run; after a failure the next test gets a new one."""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.catalogue import Round, possible
from tests.chaos.faults import Fault
from tests.chaos.stack import Stack

VARIABLE = "RATCHET_CHAOS_SEED"
SEED = int(os.environ.setdefault(VARIABLE, str(random.SystemRandom().randrange(10**6))))
"""Of the whole run: the processes that share its tests inherit the variable."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which run this was."""
    terminalreporter.write_line(f"chaos seed: {SEED} ({VARIABLE}={SEED} plays it again)")


class Player:
    """Plays rounds on a stack that is started when the first is played, and again after one that failed."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._exit = ExitStack()
        self._stack: Stack | None = None
        self._round: Round | None = None
        self.lines: list[str] = []

    @property
    def stack(self) -> Stack:
        """The stack that runs."""
        if self._stack is None:
            self._stack = self._exit.enter_context(Stack(self._factory.mktemp("chaos")))
            self._round = Round(self._stack, SEED)
        return self._stack

    def play(self, fault: Fault, **how: object) -> None:
        """One round; a stack in which a promise broke is not used again."""
        assert self.stack is not None
        assert self._round is not None
        try:
            self.lines.append(self._round.play(fault, **how))
        except BaseException:
            self.close()
            raise

    def draw(self, seed: int, count: int) -> None:
        """Rounds of faults that the seed draws."""
        rng = random.Random(seed)
        for _ in range(count):
            self.play(rng.choice(possible(self.stack)))

    def close(self) -> None:
        """End the stack."""
        self._stack = self._round = None
        self._exit.close()


@pytest.fixture(scope="session")
def players(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    """The player of the whole run."""
    made = Player(tmp_path_factory)
    yield made
    made.close()


@pytest.fixture
def player(players: Player, capsys: pytest.CaptureFixture[str]) -> Iterator[Player]:
    """The player; what it played is printed."""
    yield players
    with capsys.disabled():
        while players.lines:
            print(f"\n  {players.lines.pop(0)} ", end="")
