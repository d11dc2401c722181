"""A column's cells as numbers or categories, by the same rules as a request's."""

import contextlib
import math
from collections.abc import Hashable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from shared.errors import DataError
from shared.signature import FLOAT32_MAX, MISSING, Feature, canonical_category, label_fault

NO_NUMBER = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "?", "#n/a"})
"""What a text cell of a numeric column holds, in lower case, when it holds nothing."""


def present(column: "pd.Series[Any]") -> npt.NDArray[np.bool_]:
    """Which cells hold a value, bool (n,); the empty text is none."""
    filled = np.array(column.notna(), dtype=np.bool_)
    if not pd.api.types.is_numeric_dtype(column.dtype):
        filled &= np.array([not (isinstance(cell, str) and cell == MISSING) for cell in cells(column)], bool)
    return filled


def cells(column: "pd.Series[Any]") -> list[object]:
    """A column's values as plain Python objects."""
    return column.astype(object).tolist()


def numbers(column: "pd.Series[Any]") -> npt.NDArray[np.float64]:
    """A column as float64 (n,), NaN for missing.

    Raises:
        DataError: the first cell that is no number, or that float32 can't hold, by row and column.
    """
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        values = np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
    else:
        values = np.full(len(column), np.nan)
        for row, cell in enumerate(cells(column)):
            try:
                values[row] = number(cell)
            except ValueError as exc:
                raise DataError(
                    f"{place(column, row)}: {exc}; correct the cell, or name the column with --categorical"
                ) from None
    large = np.flatnonzero(np.abs(values) > FLOAT32_MAX)
    if large.size:
        row = int(large[0])
        raise DataError(
            f"{place(column, row)}: {float(values[row])!r} is a number that float32 can't hold; "
            "correct the cell, or leave the column out with --drop"
        )
    return values


def number(cell: object) -> float:
    """One cell as a number, NaN if it holds none.

    Raises:
        ValueError: it is something else.
    """
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return math.nan
    if isinstance(cell, str):
        text = cell.strip()
        if text.lower() in NO_NUMBER:
            return math.nan
        if "_" not in text:  # Python reads 1_000 as a number; a file means something else by it
            with contextlib.suppress(ValueError):
                return float(text)
    elif isinstance(cell, int | float | Decimal | np.number | np.bool_):
        try:
            return float(cell)
        except OverflowError:
            return math.inf
    raise ValueError(f"{str(cell)[:40]!r} is no number")


def categories(column: "pd.Series[Any]") -> npt.NDArray[np.object_]:
    """A column as canonical text, object (n,), None for missing.

    Raises:
        DataError: the first cell that can't be a category, by row and column.
    """
    known: dict[tuple[type, object], str] = {}
    found = np.full(len(column), None, dtype=object)
    values = cells(column)
    for row in np.flatnonzero(present(column)):
        cell = values[row]
        try:
            key = (type(cell), cell if isinstance(cell, Hashable) else id(cell))
            text = known.get(key)
            found[row] = known[key] = canonical_category(cell) if text is None else text
        except ValueError as exc:
            raise DataError(
                f"{place(column, row)}: {exc}; correct the cell, or leave the column out with --drop"
            ) from None
    return found


def place(column: "pd.Series[Any]", row: int | np.intp) -> str:
    """Where a cell stands, its row counted from 1 as the frame was loaded."""
    at = column.index[int(row)]
    return f"column {column.name!r}, row {at + 1 if isinstance(at, int | np.integer) else at}"


def labelled(frame: pd.DataFrame, target: str) -> pd.DataFrame:
    """The rows whose target is known.

    Raises:
        DataError: the frame has no such column.
    """
    if target not in frame.columns:
        raise DataError(f"no column {target!r} to predict; the columns are {', '.join(map(str, frame))}")
    return frame[present(frame[target])]


def labels(frame: pd.DataFrame, target: str) -> npt.NDArray[np.object_]:
    """The target of every row as text, object (n,), None where it is not known.

    Text stays as it is written, so that clients can send the very labels of the file.

    Raises:
        DataError: a cell that can't be a label, by row and column.
    """
    column = frame[target]
    found = categories(column)
    for row, cell in enumerate(cells(column)):
        if isinstance(cell, str) and found[row] is not None:
            found[row] = cell
    for row, label in enumerate(found):
        fault = label_fault(label) if label is not None else None
        if fault:
            raise DataError(f"{place(frame[target], row)}: {fault}")
    return found


def records(frame: pd.DataFrame, features: Sequence[Feature]) -> list[dict[str, float | str | None]]:
    """Every row as it is sent and stored: what `Signature.canonical` gives for the same values.

    Raises:
        DataError: a column is not there, or a cell can't be read, by row and column.
    """
    _check_columns(frame, features)
    columns: list[list[float | str | None]] = []
    for feature in features:
        column = frame[feature.name]
        if feature.kind == "categorical":
            columns.append(categories(column).tolist())
        else:
            columns.append([None if math.isnan(value) else value for value in numbers(column).tolist()])
    names = [feature.name for feature in features]
    if not names:
        return [{} for _ in range(len(frame))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _check_columns(frame: pd.DataFrame, features: Sequence[Feature]) -> None:
    absent = [feature.name for feature in features if feature.name not in frame.columns]
    if absent:
        raise DataError(f"the data lack the column {', '.join(map(repr, absent))} of the signature")
