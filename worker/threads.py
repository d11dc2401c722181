"""As many threads as training may use, in every pool that it meets."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from shared.cores import cores


def count(asked: int) -> int:
    """The threads that `RATCHET_THREADS` means; 0: as many as the container has cores."""
    return asked or cores()


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Hold BLAS, OpenMP and Arrow to that many threads: they take the host's cores for theirs.

    Libraries that are loaded inside the block are not held.
    """
    before = pa.cpu_count()
    pa.set_cpu_count(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        pa.set_cpu_count(before)
