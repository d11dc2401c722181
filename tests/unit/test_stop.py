"""Asked to stop: at once where Python can bear it, at the next tree inside CatBoost's fit."""

import signal
from collections.abc import Iterator

import numpy as np
import pytest

from worker.run import Stop
from worker.training import train


@pytest.fixture
def stop() -> Iterator[Stop]:
    """Listens to SIGUSR1."""
    made = Stop()
    before = signal.signal(signal.SIGUSR1, made.on_signal)
    yield made
    signal.signal(signal.SIGUSR1, before)


def test_nobody_asks(stop: Stop) -> None:
    stop.check()
    with stop.held():
        stop.check()


def test_asked_it_stops_at_once(stop: Stop) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt):
        stop.check()


def test_held_it_stops_where_it_is_checked_or_at_the_end(stop: Stop) -> None:
    reached = []

    def work(*, check: bool) -> None:
        with stop.held():
            signal.raise_signal(signal.SIGUSR1)
            reached.append("after the signal")
            if check:
                stop.check()
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        work(check=False)
    with pytest.raises(KeyboardInterrupt):
        work(check=True)
    assert reached == ["after the signal", "the end", "after the signal"]


def test_a_fit_that_is_held_stops_at_the_next_tree(stop: Stop) -> None:
    matrix = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    trees = []

    def watch(done: int, _total: int) -> None:
        trees.append(done)
        if done == 3:
            signal.raise_signal(signal.SIGUSR1)
        if done > 3:
            stop.check()

    def fit() -> None:
        with stop.held():
            y = (matrix[:, 0] > 0).astype(np.int64)
            train(matrix, y, ("a", "b"), iterations=10**6, seed=0, threads=1, progress=watch)

    with pytest.raises(KeyboardInterrupt):
        fit()
    assert trees[-1] == 4
