"""Labelled rows as arrays: what every step of training takes and gives."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Labelled rows.

    `numeric` is float32 (n, a) with NaN for missing; `categorical` is object (n, b) of text with
    `shared.signature.MISSING` for missing; `labels` is object (n,) of text.

    Raises:
        ValueError: the three don't have the same number of rows.
    """

    numeric: npt.NDArray[np.float32]
    categorical: npt.NDArray[np.object_]
    labels: npt.NDArray[np.object_]

    def __post_init__(self) -> None:
        if not len(self.numeric) == len(self.categorical) == len(self.labels):
            raise ValueError("numeric, categorical and labels differ in length")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: npt.NDArray[Any]) -> "Rows":
        """The rows of a boolean mask (n,) or of an integer array, in its order."""
        return Rows(
            numeric=self.numeric[index], categorical=self.categorical[index], labels=self.labels[index]
        )
