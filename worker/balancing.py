"""Balancing of training rows: synthetic rows (SMOTE), class weights, or nothing.

Synthetic rows are made on the numerics and on one code per categorical feature, recovered from its
one-hot block, and expanded again: SMOTE on the one-hot columns themselves would invent fractions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from imblearn.over_sampling import SMOTE, SMOTEN, SMOTENC

from worker.preprocessing import Preprocessor

NEIGHBOURS = 5
ROUND = 10_000
"""Synthetic rows made at a time: the samplers hold all neighbours of all of them at once."""

Mode = Literal["smote", "weights", "none"]
Matrix = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Balanced:
    """Balanced training rows: the given ones first, synthetic ones after them.

    `matrix` float32 (n', m), `y` int64 (n',), `weights` float32 (n',) or None, `report` for JSON.
    """

    matrix: Matrix
    y: Ints
    weights: npt.NDArray[np.float32] | None
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A SMOTE for one kind of data, and its bounds.

    The cost grows with the square of the rows that neighbours are looked for among: each round draws
    at most `base` of a class. At most `synthetic` rows are made in all. Measured on 2 cores: SMOTENC
    0.2 ms a row, SMOTEN 1 s to compare 1,000 rows and 2.7 s for 2,000, SMOTE 0.03 ms a row.
    """

    name: str
    base: int
    synthetic: int


SAMPLERS = {
    "numeric": Sampler(name="SMOTE", base=10_000, synthetic=200_000),
    "mixed": Sampler(name="SMOTENC", base=4_000, synthetic=50_000),
    "categorical": Sampler(name="SMOTEN", base=1_000, synthetic=50_000),
}


def balance(
    matrix: Matrix,
    y: Ints,
    preprocessor: Preprocessor,
    *,
    mode: Mode,
    seed: int,
    classes: Sequence[str] | None = None,
    sampler: Sampler | None = None,
) -> Balanced:
    """Balance the classes of training rows.

    `smote` raises every class to the size of the largest, or as near as the sampler's bound allows (the
    smallest classes first); a class of one row is repeated. `weights` gives each class the same total
    weight, its rows n / (classes · rows of the class). `none` changes nothing.

    Args:
        matrix: float32 (n, m), as the preprocessor's graph gives it.
        y: int64 (n,), the classes' numbers.
        classes: the classes' names, for the report; without them it has their numbers.
        sampler: bounds other than those of `SAMPLERS`.
    """
    numbers, counts = np.unique(y, return_counts=True)
    names = [classes[n] if classes else str(n) for n in numbers.tolist()]
    rows = dict(zip(names, counts.tolist(), strict=True))
    report: dict[str, Any] = {"mode": mode, "rows_in": len(y), "rows_out": len(y), "before": rows}
    if mode == "weights":
        weight = len(y) / (len(numbers) * counts)
        report["weights"] = dict(zip(names, weight.round(6).tolist(), strict=True))
        weights = weight[np.searchsorted(numbers, y)].astype(np.float32)
        return Balanced(matrix=matrix, y=y, weights=weights, report=report)
    if mode == "none" or len(numbers) < 2:
        return Balanced(matrix=matrix, y=y, weights=None, report=report)
    return _smote(matrix, y, _Coded(preprocessor), sampler, np.random.default_rng(seed), report)


def _smote(
    matrix: Matrix,
    y: Ints,
    coded: "_Coded",
    sampler: Sampler | None,
    rng: np.random.Generator,
    report: dict[str, Any],
) -> Balanced:
    sampler = sampler or SAMPLERS[coded.kind]
    numbers, counts = np.unique(y, return_counts=True)
    target = _target(counts, sampler.synthetic)
    missing = {int(n): max(0, target - int(c)) for n, c in zip(numbers, counts, strict=True)}
    made, made_y = _synthetic(coded, coded.compress(matrix), y, missing, sampler.base, rng)
    added = {
        "method": sampler.name,
        "rows_out": len(y) + len(made),
        "synthetic": dict(zip(report["before"], missing.values(), strict=True)),
        "target": target,
        "capped": target < int(counts.max()),
        "neighbours_among": sampler.base,
        "repeated": [name for name, count in report["before"].items() if count < 2],
    }
    return Balanced(
        matrix=np.vstack([matrix, coded.expand(made)]),
        y=np.concatenate([y, made_y]),
        weights=None,
        report=report | added,
    )


def _target(counts: npt.NDArray[np.int64], most: int) -> int:
    """The largest size that classes can be raised to with at most `most` new rows."""
    low, high = int(counts.min()), int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.maximum(middle - counts, 0).sum()) <= most:
            low = middle
        else:
            high = middle - 1
    return low


def _synthetic(
    coded: "_Coded",
    compressed: Matrix,
    y: Ints,
    missing: dict[int, int],
    base: int,
    rng: np.random.Generator,
) -> tuple[Matrix, Ints]:
    """The rows that classes are missing, compressed: (float32 (s, a + b), int64 (s,))."""
    parts = [compressed[:0]]
    for number, needed in missing.items():
        others = np.flatnonzero(y != number)
        own = np.flatnonzero(y == number)
        for start in range(0, needed, ROUND):
            size = min(ROUND, needed - start)
            if len(own) < 2:
                parts.append(np.repeat(compressed[own], size, axis=0))
                continue
            drawn = np.concatenate([_some(own, base, rng), _some(others, base, rng)])
            parts.append(_round(coded, compressed[drawn], y[drawn], number, size, rng))
    labels = [np.full(needed, number, dtype=np.int64) for number, needed in missing.items()]
    return np.vstack(parts), np.concatenate(labels)


def _some(index: npt.NDArray[np.intp], most: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    return index if len(index) <= most else np.sort(rng.choice(index, most, replace=False))


def _round(
    coded: "_Coded", rows: Matrix, y: Ints, number: int, size: int, rng: np.random.Generator
) -> Matrix:
    """`size` synthetic rows of one class. The other classes' rows only give the samplers their frame."""
    count = int((y == number).sum())
    options = {
        "sampling_strategy": {number: count + size},
        "k_neighbors": min(NEIGHBOURS, count - 1),
        "random_state": int(rng.integers(2**31)),
    }
    if coded.kind == "numeric":
        sampler = SMOTE(**options)
    elif coded.kind == "categorical":
        sampler = SMOTEN(**options)
    else:
        sampler = SMOTENC(categorical_features=list(range(coded.numerics, rows.shape[1])), **options)
    grown, _ = sampler.fit_resample(rows, y)
    return np.asarray(grown[len(rows) :], dtype=np.float32)


class _Coded:
    """The scaled matrix with one code column per one-hot block: numerics first, then codes.

    A code is the category's place in its block; all zeros ("other") is the place behind the last.
    """

    def __init__(self, preprocessor: Preprocessor) -> None:
        self.numerics = preprocessor.numeric_width
        self._blocks = preprocessor.blocks
        self._width = len(preprocessor.scaled_features)

    @property
    def kind(self) -> str:
        if not self._blocks:
            return "numeric"
        return "mixed" if self.numerics else "categorical"

    def compress(self, matrix: Matrix) -> Matrix:
        """(n, m) → (n, a + b)."""
        columns = [matrix[:, : self.numerics]]
        for block in self._blocks:
            one_hot = matrix[:, block.start : block.stop]
            other = block.stop - block.start
            code = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), other)
            columns.append(code[:, None].astype(np.float32))
        return np.hstack(columns)

    def expand(self, compressed: Matrix) -> Matrix:
        """(n, a + b) → (n, m)."""
        matrix = np.zeros((len(compressed), self._width), dtype=np.float32)
        matrix[:, : self.numerics] = compressed[:, : self.numerics]
        for place, block in enumerate(self._blocks):
            code = compressed[:, self.numerics + place].astype(np.int64)
            matrix[:, block.start : block.stop] = code[:, None] == np.arange(block.stop - block.start)
        return matrix
