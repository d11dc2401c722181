"""Which data the bootstrap used, and which rows it never saw."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson
import pandas as pd

from cli.data import churn, load_file, plans
from cli.state import make_private, read_object, write_private
from shared.errors import DataError, Fault
from shared.signature import Feature, Signature
from worker.columns import labels, records

FILE = "data.json"
Rows = list[dict[str, float | str | None]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """`name` is churn, plans or a file's absolute path; the first `rows_used` rows of it made version 1,
    and `played` further ones were sent since."""

    name: str
    target: str
    rows_used: int
    played: int = 0
    seed: int = 0

    @classmethod
    def load(cls, home: Path) -> "Source":
        """The source that `home` remembers.

        Raises:
            DataError: there is none.
        """
        found = read_object(home / FILE)
        try:
            return cls(**found or {})
        except TypeError:
            raise DataError(
                f"{home / FILE} names no data to play: the model was not made by `ratchet up --data` or "
                "`ratchet bootstrap` here"
            ) from None

    def save(self, home: Path) -> None:
        """Remember the source in `home`."""
        write_private(make_private(home) / FILE, orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))

    def unseen(self, rows: int) -> "Unseen":
        """The next rows that the bootstrap never saw.

        A data set that ends starts over at the first row that the bootstrap has not used, and the note
        says so.

        Raises:
            DataError: the file can't be read any more, or is another by now.
        """
        after = replace(self, played=self.played + rows)
        if self.name == "plans":
            frame = plans(rows, seed=self.seed, start=self.rows_used + self.played)
            return Unseen(frame=frame, note="", source=after)
        whole = churn() if self.name == "churn" else load_file(Path(self.name))
        if len(whole) < self.rows_used:
            raise DataError(f"{self.name} has {len(whole)} rows; it had {self.rows_used} at the bootstrap")
        first, note = self.rows_used, ""
        if first == len(whole):
            first, note = 0, f"the bootstrap used all {first} rows of {self.name}: these are rows it knows"
        size = len(whole) - first
        if not note and self.played + rows > size:
            note = f"{self.name} has {size} rows that the bootstrap never saw: some are sent again"
        index = [first + (self.played + n) % size for n in range(rows)]
        return Unseen(frame=whole.iloc[index], note=note, source=after)


@dataclass(frozen=True, kw_only=True, eq=False)
class Unseen:
    """Rows to play, what to say of them, and the source as it is afterwards."""

    frame: pd.DataFrame
    note: str
    source: Source

    def traffic(self, features: Sequence[Feature]) -> tuple[Rows, list[str | None]]:
        """Canonical rows with their labels, None where there is none.

        Rows that the signature refuses (a required feature is missing) are left out.

        Raises:
            DataError: a cell can't be read, or the signature refuses every row.
        """
        signature = Signature(id=0, target=self.source.target, features=tuple(features))
        rows, truths = records(self.frame, features), labels(self.frame, signature.target)
        kept: Rows = []
        known: list[str | None] = []
        faults: list[Fault] = []
        for number, (row, truth) in enumerate(zip(rows, truths, strict=True)):
            found: list[Fault] = []
            signature.canonical(row, number, found)
            faults += found
            if not found:
                kept.append(row)
                known.append(truth)
        if not kept:
            first = f": {faults[0].feature}: {faults[0].detail}" if faults else ""
            raise DataError(f"no row of {self.source.name} fits the live signature{first}")
        return kept, known
