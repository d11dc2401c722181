"""A model's input contract: which features, in what order, and how rows become arrays."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from shared.errors import Fault, FaultKind

FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_TEXT = 200
MISSING = ""
"""A missing category, in arrays and graphs. A client's empty text means the same."""

_NUMERIC_TEXT = re.compile(r"-?\d{1,15}\.0+")


class Unusable(ValueError):
    """A value that a feature can't have; `kind` as in `Fault`."""

    def __init__(self, detail: str, kind: FaultKind) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature. `required`: may not be missing. `non_negative`: below zero means missing."""

    name: str
    kind: Literal["numeric", "categorical"]
    required: bool = False
    non_negative: bool = False


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The features that a model reads, in order; fixed by the bootstrap."""

    id: int
    target: str
    features: tuple[Feature, ...]

    @cached_property
    def numeric(self) -> tuple[Feature, ...]:
        """The numeric features, in the order of the `numeric` input."""
        return tuple(f for f in self.features if f.kind == "numeric")

    @cached_property
    def categorical(self) -> tuple[Feature, ...]:
        """The categorical features, in the order of the `categorical` input."""
        return tuple(f for f in self.features if f.kind == "categorical")

    @cached_property
    def _readers(self) -> tuple[tuple[str, bool, Callable[[object], float | str]], ...]:
        return tuple(
            (f.name, f.required, _number if f.kind == "numeric" else canonical_category)
            for f in self.features
        )

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(f.name for f in self.features)

    def to_json(self) -> list[dict[str, Any]]:
        """The features as plain data, as they are stored."""
        return [asdict(f) for f in self.features]

    @classmethod
    def from_json(cls, *, id: int, target: str, features: Sequence[Mapping[str, Any]]) -> "Signature":
        """The inverse of `to_json`."""
        return cls(id=id, target=target, features=tuple(Feature(**f) for f in features))

    def canonical(self, row: object, number: int, faults: list[Fault]) -> dict[str, float | str | None]:
        """One row as it is stored: every feature in order, numbers as float, categories as text.

        Args:
            row: what the client sent for one row.
            number: the row's position in the request, for the faults.
            faults: every fault found is appended here.
        """
        if not isinstance(row, dict):
            faults.append(Fault(detail="a row must be an object of features", row=number, kind="type"))
            return {}
        found: dict[str, float | str | None] = {}
        for name, required, read in self._readers:
            value = row.get(name)
            if value is None or (value == MISSING and read is canonical_category):
                found[name] = None
                if required:
                    detail = "required feature is missing"
                    faults.append(Fault(detail=detail, row=number, feature=name, kind="missing"))
                continue
            try:
                found[name] = read(value)
            except Unusable as exc:
                faults.append(Fault(detail=str(exc), row=number, feature=name, kind=exc.kind))
        if len(row) > len(found) or not self._names.issuperset(row):
            faults.extend(
                Fault(detail="unknown feature", row=number, feature=name[:MAX_TEXT], kind="unknown_feature")
                for name in row
                if name not in self._names
            )
        return found

    def arrays(
        self, rows: Sequence[Mapping[str, float | str | None]]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.object_]]:
        """Canonical rows as model inputs.

        Returns:
            `numeric` float32 (n, a) with NaN for missing, and `categorical` object (n, b) of text
            with "" for missing.
        """
        numeric = np.array([[row[f.name] for f in self.numeric] for row in rows], dtype=np.float32).reshape(
            len(rows), len(self.numeric)
        )
        categorical = np.array(
            [[row[f.name] or MISSING for f in self.categorical] for row in rows], dtype=object
        ).reshape(len(rows), len(self.categorical))
        return numeric, categorical

    def feed(self, rows: Sequence[Mapping[str, float | str | None]]) -> dict[str, npt.NDArray[Any]]:
        """Canonical rows as the inputs of `model.onnx`; an input without features is left out."""
        numeric, categorical = self.arrays(rows)
        return feed(numeric, categorical)


def feed(
    numeric: npt.NDArray[np.float32], categorical: npt.NDArray[np.object_]
) -> dict[str, npt.NDArray[Any]]:
    """Arrays as graph inputs; an input of width 0 does not exist in the graph."""
    inputs: dict[str, npt.NDArray[Any]] = {}
    if numeric.shape[1]:
        inputs["numeric"] = numeric
    if categorical.shape[1]:
        inputs["categorical"] = categorical
    return inputs


def _number(value: object) -> float:
    if type(value) is float and -FLOAT32_MAX <= value <= FLOAT32_MAX:  # nearly every value
        return value + 0.0  # -0.0 is 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable(f"a number is needed, not {_kind(value)}", "type")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= FLOAT32_MAX:
        raise Unusable("a number that float32 can't hold", "range")
    return number


def canonical_category(value: object) -> str:
    """One text per category, in training and in serving: 1, 1.0 and "1" are "1"; true is "true".

    Raises:
        Unusable: the value is no text, number or truth value, or is unusable text.
    """
    if isinstance(value, str):
        return _canonical_text(value)
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return _number_text(int(value))
    if isinstance(value, float | np.floating):
        return _number_text(float(value))
    raise Unusable(f"a text is needed, not {_kind(value)}", "type")


def _number_text(value: int | float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise Unusable("a category that is no finite number", "range")
    if abs(value) >= 2**63:  # in JSON a longer number is a float for some readers, with other digits
        raise Unusable("a category that is a number beyond 64 bits", "range")
    return str(int(value)) if value == int(value) else repr(value)


def _canonical_text(value: str) -> str:
    if len(value) > MAX_TEXT:
        raise Unusable(f"a category longer than {MAX_TEXT} characters", "range")
    if "\x00" in value:
        raise Unusable("a category with a NUL character", "range")
    if value in ("True", "TRUE", "False", "FALSE"):
        return value.lower()
    # the cheap question first: this runs for every category of every request
    if value[-1:] == "0" and _NUMERIC_TEXT.fullmatch(value):
        return str(int(value[: value.index(".")]))
    return value


def label_fault(value: object) -> str | None:
    """What is wrong with a label, or None. A label is a text of 1 to 200 characters."""
    if not isinstance(value, str):
        return f"a label must be a text, not {_kind(value)}"
    if not 1 <= len(value) <= MAX_TEXT:
        return f"a label must have 1 to {MAX_TEXT} characters"
    return "a label with a NUL character" if "\x00" in value else None


def dump_features(row: Mapping[str, float | str | None]) -> bytes:
    """A canonical row as the JSON text that is stored, hashed and compared."""
    return orjson.dumps(row)


def _kind(value: object) -> str:
    names = {str: "text", bool: "true or false", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")
