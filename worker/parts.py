"""Dataset parts: immutable Parquet files of labelled rows, written in chunks and read whole."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from shared.artifacts import ArtifactStore, Stored
from shared.signature import MISSING, Signature
from worker.rows import Rows

BUCKETS = 10_000
HOLDOUT_BUCKETS = 2_000
CHUNK_ROWS = 5_000


@dataclass(frozen=True, kw_only=True)
class PartRow:
    """One labelled row. `features` is canonical JSON; what a bootstrap row has no value for is None."""

    row_id: str
    features: bytes
    label: str
    label_id: int | None = None
    predicted_at: datetime | None = None
    labelled_at: datetime | None = None
    model_version: int | None = None


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """A part in the store."""

    key: str
    rows: int
    stored: Stored


@dataclass(frozen=True, kw_only=True)
class LoadedPart:
    """A part in memory: arrays of n rows, oldest first. `label_ids` is 0 for bootstrap rows."""

    rows: Rows
    buckets: npt.NDArray[np.int16]
    label_ids: npt.NDArray[np.int64]


def bucket(features: bytes) -> int:
    """0 to 9999, from what the row says and not from its id: twins never land on both sides."""
    return int.from_bytes(blake2b(features, digest_size=8).digest(), "big") % BUCKETS


def write_part(store: ArtifactStore, key: str, rows: Iterable[PartRow], signature: Signature) -> StoredPart:
    """Write rows to the store, a chunk in memory at a time."""
    schema = _schema(signature)
    written = 0
    with store.draft(key) as draft, pq.ParquetWriter(draft.path, schema, compression="zstd") as writer:
        for chunk in _chunks(rows):
            writer.write_table(pa.Table.from_pylist([_entry(row) for row in chunk], schema))
            written += len(chunk)
    return StoredPart(key=key, rows=written, stored=draft.stored)


def read_part(path: Path, signature: Signature) -> LoadedPart:
    """Read a part as arrays."""
    table = pq.read_table(path)
    features = table["features"].combine_chunks()
    columns = {field.name: features.field(field.name) for field in features.type}
    numeric = [
        np.asarray(columns[f.name].to_numpy(zero_copy_only=False), np.float32) for f in signature.numeric
    ]
    categorical = [
        np.array([MISSING if v is None else v for v in columns[f.name].to_pylist()], dtype=object)
        for f in signature.categorical
    ]
    n = table.num_rows
    rows = Rows(
        numeric=np.stack(numeric, axis=1) if numeric else np.empty((n, 0), np.float32),
        categorical=np.stack(categorical, axis=1) if categorical else np.empty((n, 0), object),
        labels=np.array(table["label"].to_pylist(), dtype=object),
    )
    return LoadedPart(
        rows=rows,
        buckets=table["bucket"].to_numpy(),
        label_ids=table["label_id"].fill_null(0).to_numpy(),
    )


def _schema(signature: Signature) -> pa.Schema:
    kinds = {"numeric": pa.float64(), "categorical": pa.string()}
    moment = pa.timestamp("us", tz="UTC")
    return pa.schema(
        [
            ("row_id", pa.string()),
            ("label_id", pa.int64()),
            ("bucket", pa.int16()),
            ("predicted_at", moment),
            ("labelled_at", moment),
            ("model_version", pa.int64()),
            ("features", pa.struct([(f.name, kinds[f.kind]) for f in signature.features])),
            ("label", pa.string()),
        ]
    )


def _entry(row: PartRow) -> dict[str, Any]:
    return {
        "row_id": row.row_id,
        "label_id": row.label_id,
        "bucket": bucket(row.features),
        "predicted_at": row.predicted_at,
        "labelled_at": row.labelled_at,
        "model_version": row.model_version,
        "features": orjson.loads(row.features),
        "label": row.label,
    }


def _chunks(rows: Iterable[PartRow]) -> Iterator[Sequence[PartRow]]:
    source = iter(rows)
    while chunk := list(islice(source, CHUNK_ROWS)):
        yield chunk
