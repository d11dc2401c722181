import datetime as dt
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from cli.data import CLEAN_ROWS, PLANS_TARGET, churn, plans
from shared.errors import DataError, Fault
from shared.signature import MISSING, Feature, Signature
from worker.columns import categories, labelled, labels, numbers, records
from worker.inference import Inferred, infer

ROWS = 60


def frame_of(**columns: Any) -> pd.DataFrame:
    base: dict[str, Any] = {"size": np.linspace(1.5, 9.5, ROWS), "y": ["a", "b", "b"] * (ROWS // 3)}
    return pd.DataFrame(base | columns)


def feature(found: Inferred, name: str) -> Feature:
    return next(feature for feature in found.features if feature.name == name)


def signature_of(frame: pd.DataFrame, target: str) -> Signature:
    return Signature(id=1, target=target, features=infer(frame, target=target).features)


def arrays(frame: pd.DataFrame, signature: Signature) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """A frame as model inputs, the way a part and a request become them."""
    return signature.arrays(records(frame, signature.features))


def test_kinds_required_and_non_negative_follow_from_the_cells() -> None:
    found = infer(
        frame_of(
            balance=[-1.0, *np.linspace(0.5, 3.0, ROWS - 1)],
            gaps=[np.nan, *np.linspace(0.5, 3.0, ROWS - 1)],
            brand=["x", "y", None] * (ROWS // 3),
            member=[True, False] * (ROWS // 2),
        ),
        target="y",
    )
    assert feature(found, "size") == Feature(name="size", kind="numeric", required=True, non_negative=True)
    assert feature(found, "balance") == Feature(name="balance", kind="numeric", required=True)
    assert feature(found, "gaps") == Feature(name="gaps", kind="numeric", non_negative=True)
    assert feature(found, "brand") == Feature(name="brand", kind="categorical")
    assert feature(found, "member") == Feature(name="member", kind="categorical", required=True)
    assert found.classes == {"b": 40, "a": 20}
    assert list(found.classes) == ["b", "a"]


def test_text_that_is_numbers_with_blanks_is_a_number_that_may_be_missing() -> None:
    charges = [" ", "?", "N/A", *(f"{n}.50" for n in range(ROWS - 3))]
    frame = frame_of(total_charges=charges)
    assert feature(infer(frame, target="y"), "total_charges") == Feature(
        name="total_charges", kind="numeric", non_negative=True
    )
    assert [row["total_charges"] for row in records(frame, infer(frame, target="y").features)[2:5]] == [
        None,
        0.5,
        1.5,
    ]


def test_codes_with_leading_zeros_stay_text() -> None:
    frame = frame_of(code=["007", "012", "100"] * (ROWS // 3))
    assert feature(infer(frame, target="y"), "code").kind == "categorical"
    assert infer(frame, target="y", numeric=["code"]).features[1].kind == "numeric"


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (["same"] * ROWS, "'same' in every row"),
        ([3] * ROWS, "3 in every row"),
        ([None] * ROWS, "no value"),
        (range(1000, 1000 + ROWS), "id"),
        ([f"c-{n}" for n in range(ROWS)], "id or free text"),
        (pd.date_range("2024-01-01", periods=ROWS), "date"),
        ([f"2024-01-{1 + n % 28:02}" for n in range(ROWS)], "date"),
        ([f"{1 + n % 28}/12/2024 10:00" for n in range(ROWS)], "date"),
        ([dt.date(2024, 1, 1 + n % 28) for n in range(ROWS)], "date"),
        (["z" * 201, "b"] * (ROWS // 2), "more than 200 characters"),
        ([[1]] * ROWS, "type list"),
    ],
)
def test_columns_that_tell_nothing_are_left_out_with_the_reason(column: Any, reason: str) -> None:
    found = infer(frame_of(strange=column), target="y")
    assert reason in found.left_out["strange"]
    assert [feature.name for feature in found.features] == ["size"]


def test_ids_are_known_by_name_too_and_times_by_name_and_size() -> None:
    scattered = np.random.default_rng(0).permutation(10_000)[:ROWS]
    found = infer(
        frame_of(customer_id=scattered, price=scattered, created_at=1_700_000_000 + scattered), target="y"
    )
    assert "id" in found.left_out["customer_id"]
    assert "epoch" in found.left_out["created_at"]
    assert feature(found, "price").kind == "numeric"


def test_what_the_user_says_overrides_what_the_cells_suggest() -> None:
    frame = frame_of(
        key=range(ROWS), level=[1, 2, 3] * (ROWS // 3), extra=[0.5, 1.5] * (ROWS // 2), row=range(ROWS)
    )
    found = infer(frame, target="y", id_column="row", numeric=["key"], categorical=["level"], drop=["extra"])
    assert feature(found, "key").kind == "numeric"
    assert feature(found, "level").kind == "categorical"
    assert set(found.left_out) == {"extra", "row"}


def test_rows_without_a_target_are_left_out_and_counted() -> None:
    frame = frame_of()
    frame.loc[:4, "y"] = None
    frame.loc[5, "y"] = ""
    found = infer(frame, target="y")
    assert (found.rows, found.unlabelled) == (ROWS - 6, 6)
    kept = labelled(frame, "y")
    numeric, categorical = arrays(kept, signature_of(frame, "y"))
    assert (numeric.shape, categorical.shape) == ((ROWS - 6, 1), (ROWS - 6, 0))
    assert labels(kept, "y").shape == (ROWS - 6,)
    assert numeric[0, 0] == np.float32(frame["size"][6])


def test_many_categories_and_rare_classes_are_said() -> None:
    frame = frame_of(city=[f"c{n // 2}" for n in range(ROWS)])
    frame.loc[0, "y"] = "rare"
    found = infer(frame, target="y", max_categories=10)
    assert any("30 categories" in text for text in found.warnings)
    assert any("'rare' has 1 rows" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "z"}, "no column 'z'"),
        ({"target": "y", "drop": ["z"]}, "--drop z: no such column"),
        ({"target": "y", "id_column": "z"}, "--id z: no such column"),
        ({"target": "y", "numeric": ["y"]}, "that is the target"),
        ({"target": "y", "numeric": ["size"], "drop": ["size"]}, "decide for one"),
        ({"target": "y", "drop": ["size", "other"]}, "can be a feature"),
        ({"target": "y", "numeric": ["other"]}, "column 'other', row 1: 'p' is no number"),
        ({"target": "constant"}, "only the class 'k'"),
        ({"target": "size"}, "different values"),
    ],
)
def test_a_wrong_choice_is_named(options: dict[str, Any], message: str) -> None:
    frame = frame_of(other=["p", "q"] * (ROWS // 2), constant=["k"] * ROWS)
    with pytest.raises(DataError, match=message):
        infer(frame, **options)


def test_a_number_that_float32_cannot_hold_is_named_by_row_and_column() -> None:
    frame = frame_of(big=[*np.linspace(0, 1, ROWS - 1), 1e39])
    with pytest.raises(DataError, match=f"column 'big', row {ROWS}: 1e\\+39"):
        infer(frame, target="y")


@pytest.mark.parametrize("name", ["churn", "plans"])
def test_rows_of_a_file_are_what_the_same_rows_are_as_json(name: str) -> None:
    frame = churn() if name == "churn" else plans(5000)
    signature = signature_of(frame[:3000], "churn" if name == "churn" else PLANS_TARGET)
    rows = records(frame, signature.features)
    faults: list[Fault] = []
    assert [signature.canonical(row, number, faults) for number, row in enumerate(rows)] == rows
    assert not faults
    numeric, categorical = signature.arrays(rows)
    for at, given in enumerate(signature.numeric):
        np.testing.assert_array_equal(numeric[:, at], numbers(frame[given.name]).astype(np.float32))
    for at, given in enumerate(signature.categorical):
        filled = [text or MISSING for text in categories(frame[given.name])]
        assert categorical[:, at].tolist() == filled
    assert numeric.dtype == np.float32


def test_categories_and_labels_have_one_text_whatever_their_type() -> None:
    frame = pd.DataFrame(
        {
            "c": pd.Series([1, 1.0, "1", True, "TRUE", None, ""], dtype=object),
            "y": pd.Series([1, 1.0, "1", 0, "0", 0, 1]),
        }
    )
    signature = Signature(id=1, target="y", features=(Feature(name="c", kind="categorical"),))
    _, categorical = arrays(frame, signature)
    assert categorical[:, 0].tolist() == ["1", "1", "1", "true", "true", "", ""]
    assert labels(frame, "y").tolist() == ["1", "1", "1", "0", "0", "0", "1"]


def test_plans_of_the_bootstrap_promise_no_negative_number() -> None:
    found = infer(plans(CLEAN_ROWS), target=PLANS_TARGET)
    assert all(feature.non_negative for feature in found.features if feature.kind == "numeric")
    assert not found.left_out
