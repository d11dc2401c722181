"""The signature: rows in their canonical form, every fault named, and the arrays that graphs take."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Fault
from shared.signature import (
    FLOAT32_MAX,
    MISSING,
    Feature,
    Signature,
    canonical_category,
    dump_features,
    feed,
    label_fault,
)

SIGNATURE = Signature(
    id=3,
    target="t",
    features=(
        Feature(name="city", kind="categorical"),
        Feature(name="age", kind="numeric", required=True, non_negative=True),
        Feature(name="plan", kind="categorical", required=True),
        Feature(name="debt", kind="numeric"),
    ),
)
ROW: dict[str, Any] = {"city": "Rome", "age": 40, "plan": "Plus", "debt": -2.5}


def canonical(row: object, number: int = 0) -> tuple[dict[str, float | str | None], list[Fault]]:
    faults: list[Fault] = []
    return SIGNATURE.canonical(row, number, faults), faults


def faults_of(**changes: object) -> list[tuple[str | None, str]]:
    return [(fault.feature, fault.detail) for fault in canonical({**ROW, **changes})[1]]


def test_a_row_has_every_feature_in_order_whatever_order_it_came_in() -> None:
    row, faults = canonical(dict(reversed(ROW.items())))
    assert faults == []
    assert list(row.items()) == [("city", "Rome"), ("age", 40.0), ("plan", "Plus"), ("debt", -2.5)]
    assert dump_features(row) == b'{"city":"Rome","age":40.0,"plan":"Plus","debt":-2.5}'


def test_absent_null_and_an_empty_category_are_one_and_the_same() -> None:
    without = {"age": 40, "plan": "Plus"}
    forms = [without, {**without, "city": None, "debt": None}, {**without, "city": ""}]
    rows = [canonical(form) for form in forms]
    assert rows == [({"city": None, "age": 40.0, "plan": "Plus", "debt": None}, [])] * 3


def test_every_fault_of_a_row_is_named_and_not_only_the_first() -> None:
    row = {"age": None, "plan": ["x"], "debt": "12", "Extra": 1, "extra 2": 2}
    _, faults = canonical(row, 7)
    assert {fault.row for fault in faults} == {7}
    assert [(fault.feature, fault.detail) for fault in faults] == [
        ("age", "required feature is missing"),
        ("plan", "a text is needed, not a list"),
        ("debt", "a number is needed, not text"),
        ("Extra", "unknown feature"),
        ("extra 2", "unknown feature"),
    ]


@pytest.mark.parametrize("row", [None, 1, "x", [1], []])
def test_a_row_that_is_no_object_is_a_fault(row: object) -> None:
    assert canonical(row, 2) == (
        {},
        [Fault(row=2, detail="a row must be an object of features", kind="type")],
    )


def test_an_unknown_feature_is_found_beside_a_missing_one() -> None:
    _, faults = canonical({"age": 1, "plan": "x", "cities": "Rome"})
    assert [(fault.feature, fault.detail) for fault in faults] == [("cities", "unknown feature")]


@pytest.mark.parametrize("value", [True, "1", "", {}, [], b"1"])
def test_what_is_no_number_is_refused_where_a_number_belongs(value: object) -> None:
    assert [feature for feature, _ in faults_of(age=value)] == ["age"]


@pytest.mark.parametrize("value", [1e39, -1e39, math.inf, math.nan, 10**400, FLOAT32_MAX * 1.1])
def test_a_number_that_float32_can_not_hold_is_refused(value: float) -> None:
    assert faults_of(debt=value) == [("debt", "a number that float32 can't hold")]


def test_the_largest_number_of_float32_is_held() -> None:
    row, faults = canonical({**ROW, "debt": FLOAT32_MAX})
    assert faults == []
    assert np.isfinite(SIGNATURE.arrays([row])[0]).all()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1, 1.0, "1", "1.0", "1.000", np.int64(1), np.float32(1)), "1"),
        ((-3, -3.0, "-3", "-3.0"), "-3"),
        ((True, "true", "True", "TRUE", np.bool_(True)), "true"),
        ((False, "false", "False", "FALSE"), "false"),
        ((0, 0.0, "0", "0.0"), "0"),
        ((1.5, "1.5"), "1.5"),
        ((10**15, 1e15, "1000000000000000"), "1000000000000000"),
    ],
)
def test_one_category_however_it_is_written(values: tuple[object, ...], text: str) -> None:
    assert {canonical_category(value) for value in values} == {text}


@pytest.mark.parametrize("text", ["007", "1.50", "1e3", "tRUE", " 1", "1.", ".0", "1.0.0", "None", "nan"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert canonical_category(text) == text


@pytest.mark.parametrize("value", [None, [], {}, b"x", math.nan, math.inf, 2**63, 1e19, "a\x00b", "x" * 201])
def test_what_can_be_no_category_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"needed|category"):
        canonical_category(value)


SCALARS = st.one_of(
    st.text(max_size=200),
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(-(2.0**63), 2.0**63, exclude_min=True, exclude_max=True),
    st.from_regex(r"-?[0-9]{1,17}\.0{1,4}", fullmatch=True),
)


@settings(deadline=None, max_examples=60)
@given(SCALARS)
def test_a_canonical_category_is_its_own_canonical_form(value: object) -> None:
    try:
        text = canonical_category(value)
    except ValueError:
        assert isinstance(value, str)
        assert "\x00" in value
        return
    assert canonical_category(text) == text
    assert text or value == ""


@settings(deadline=None, max_examples=60)
@given(st.integers(-(10**15) + 1, 10**15 - 1))
def test_a_whole_number_is_one_category_as_number_and_as_text(number: int) -> None:
    forms = (number, float(number), str(number), f"{number}.0", np.int64(number))
    assert {canonical_category(form) for form in forms} == {str(number)}


@settings(deadline=None, max_examples=60)
@given(
    st.fixed_dictionaries(
        {"age": st.floats(-1e38, 1e38), "plan": st.text(min_size=1, max_size=200)},
        optional={
            "city": st.none() | st.text(max_size=200) | st.booleans(),
            "debt": st.none() | st.integers(),
        },
    )
)
def test_a_canonical_row_is_its_own_canonical_form_and_keeps_its_text(row: dict[str, Any]) -> None:
    once, faults = canonical(row)
    if faults:
        assert any("\x00" in str(value) for value in row.values()) or abs(row.get("debt") or 0) > FLOAT32_MAX
        return
    assert canonical(once) == (once, [])
    assert dump_features(canonical(once)[0]) == dump_features(once)


def test_rows_become_arrays_in_the_order_of_each_kind() -> None:
    rows = [canonical(ROW)[0], canonical({"age": 0, "plan": "x"})[0]]
    numeric, categorical = SIGNATURE.arrays(rows)
    assert numeric.dtype == np.float32
    assert categorical.dtype == np.object_
    np.testing.assert_array_equal(numeric, np.array([[40, -2.5], [0, np.nan]], np.float32))
    assert categorical.tolist() == [["Rome", "Plus"], [MISSING, "x"]]


def test_no_rows_become_arrays_of_the_right_width() -> None:
    numeric, categorical = SIGNATURE.arrays([])
    assert (numeric.shape, categorical.shape) == ((0, 2), (0, 2))


def test_an_input_without_features_does_not_exist() -> None:
    only_texts = Signature(id=1, target="t", features=(Feature(name="a", kind="categorical"),))
    assert set(only_texts.feed([{"a": "x"}])) == {"categorical"}
    only_numbers = Signature(id=1, target="t", features=(Feature(name="a", kind="numeric"),))
    assert set(only_numbers.feed([{"a": 1.0}])) == {"numeric"}
    assert set(SIGNATURE.feed([canonical(ROW)[0]])) == {"numeric", "categorical"}
    assert feed(np.empty((3, 0), np.float32), np.empty((3, 0), object)) == {}


def test_a_stored_signature_is_the_same_again() -> None:
    again = Signature.from_json(id=3, target="t", features=SIGNATURE.to_json())
    assert again == SIGNATURE
    assert [f.name for f in again.numeric] == ["age", "debt"]
    assert [f.name for f in again.categorical] == ["city", "plan"]


@pytest.mark.parametrize("label", ["x", "x" * 200, "Premium Plan", " ", "é" * 200])
def test_a_text_of_1_to_200_characters_is_a_label(label: str) -> None:
    assert label_fault(label) is None


@pytest.mark.parametrize("label", ["", "x" * 201, "a\x00", 1, None, True, ["x"]])
def test_anything_else_is_no_label(label: object) -> None:
    fault = label_fault(label)
    assert fault is not None
    assert fault.startswith("a label")
