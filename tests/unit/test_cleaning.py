import numpy as np
import orjson
import pytest

from shared.signature import Signature
from tests.unit.samples import make_signature
from worker.cleaning import clean, negatives_to_missing
from worker.rows import Rows


def rows_of(*columns: object, labels: object = None) -> Rows:
    numeric = np.column_stack([np.asarray(c, dtype=np.float32) for c in columns])
    count = len(numeric)
    return Rows(
        numeric=numeric,
        categorical=np.empty((count, 0), dtype=object),
        labels=np.array(["a"] * count if labels is None else labels, dtype=object),
    )


def signature_of(*names: str, non_negative: tuple[str, ...] = ()) -> Signature:
    return make_signature(names, (), non_negative)


def removing(rows: Rows, signature: Signature, **options: object) -> tuple[Rows, dict]:
    return clean(rows, signature, **{"outliers": "remove", "factor": 1.5, "min_class_rows": 2, **options})


def test_negatives_become_missing_only_where_they_can_not_be():
    rows = rows_of([-1, 0, np.nan, 2], [-5, -6, 7, 8])
    cleaned, counts = negatives_to_missing(rows, signature_of("spend", "balance", non_negative=("spend",)))
    assert np.isnan(cleaned.numeric[:, 0]).tolist() == [True, False, True, False]
    assert cleaned.numeric[:, 1].tolist() == [-5, -6, 7, 8]
    assert counts == {"spend": 1}
    assert rows.numeric[0, 0] == -1, "the given rows stay as they are"


def test_a_far_value_is_removed_and_counted():
    rows = rows_of([*range(100), 1000])
    cleaned, report = removing(rows, signature_of("x"))
    assert cleaned.numeric.max() == 99
    assert (report["rows_in"], report["rows_out"], report["removed"]) == (101, 100, 1)
    assert report["outliers"] == {"x": 1}
    assert not report["capped"]


def test_fences_stand_where_the_quartiles_put_them():
    # with one far value quartiles at 25.25 and 75.75: the upper fence stands at 151.5
    inside, outside = 151.0, 152.0
    values = [*range(101)]
    cleaned, report = removing(rows_of([*values, inside]), signature_of("x"))
    assert report["removed"] == 0
    cleaned, _ = removing(rows_of([*values, outside]), signature_of("x"))
    assert outside not in cleaned.numeric


def test_negatives_go_before_the_quartiles_are_taken():
    # Forty times -1000 would stretch the fences so far that 500 lies within them.
    values = [*range(60), 500.0, *[-1000.0] * 40]
    cleaned, report = removing(rows_of(values), signature_of("x", non_negative=("x",)))
    assert report["negatives"] == {"x": 40}
    assert len(cleaned) == 100
    assert np.nanmax(cleaned.numeric) == 59


def test_missing_values_are_no_outliers():
    cleaned, report = removing(rows_of([*range(50), np.nan, np.nan]), signature_of("x"))
    assert len(cleaned) == 52
    assert report["outliers"] == {}


def test_a_feature_without_range_removes_nobody():
    # Senior citizens: one in five, and no range between the quartiles.
    flag = [0.0] * 80 + [1.0] * 20
    spread = [0.0] * 80 + list(range(20))
    cleaned, report = removing(rows_of(flag, spread), signature_of("senior", "calls"))
    assert len(cleaned) == 100
    assert report["outliers"] == {}


def test_a_feature_with_few_distinct_values_removes_nobody():
    values = [1.0, 2, 3, 4, 5, 6, 7, 8] * 10 + [100.0]
    assert len(removing(rows_of(values), signature_of("x"))[0]) == 81
    assert len(removing(rows_of([*values, 0.5]), signature_of("x"))[0]) == 81, "ten distinct values"


def test_an_all_missing_feature_removes_nobody():
    assert len(removing(rows_of([np.nan] * 30), signature_of("x"))[0]) == 30


def test_at_most_a_fifth_is_removed_the_most_extreme_first():
    far = [1000.0 + i for i in range(24)]
    rows = rows_of([*range(76), *far])
    cleaned, report = removing(rows, signature_of("x"))
    assert (report["outlier_rows"], report["removed"], report["capped"]) == (24, 20, True)
    assert sorted(cleaned.numeric[:, 0])[-4:] == far[:4]


def test_extremeness_is_measured_in_ranges_of_the_feature():
    rng = np.random.default_rng(0)
    wide, narrow = rng.uniform(0, 1e6, 100), rng.uniform(0, 1, 100)
    wide[:15], narrow[15:30] = 3e6, 60  # one range beyond its fence; over fifty beyond its own
    cleaned, report = removing(rows_of(wide, narrow), signature_of("wide", "narrow"))
    assert report["removed"] == 20
    assert 60 not in cleaned.numeric[:, 1]
    assert (cleaned.numeric[:, 0] == 3e6).sum() == 10


def test_the_last_rows_of_a_class_stay():
    rows = rows_of([*range(90), *range(1000, 1010)], labels=["common"] * 90 + ["rare"] * 10)
    cleaned, report = removing(rows, signature_of("x"), min_class_rows=7)
    rare = cleaned.numeric[cleaned.labels == "rare", 0]
    assert rare.tolist() == list(range(1000, 1007)), "the most extreme of them went"
    assert (report["removed"], report["kept_for_their_class"]) == (3, 7)
    cleaned, _ = removing(rows, signature_of("x"), min_class_rows=50)
    assert (cleaned.labels == "rare").sum() == 10


def test_clip_moves_values_to_the_fences_and_removes_nobody():
    rows = rows_of([*range(101), 1e6, -1e6, np.nan])
    cleaned, report = removing(rows, signature_of("x"), outliers="clip")
    low, high = np.nanquantile(rows.numeric.astype(float), [0.25, 0.75])
    assert len(cleaned) == 104
    assert np.nanmax(cleaned.numeric) == pytest.approx(high + 1.5 * (high - low))
    assert np.nanmin(cleaned.numeric) == pytest.approx(low - 1.5 * (high - low))
    assert np.isnan(cleaned.numeric[-1, 0])
    assert report["outliers"] == {"x": 2}
    assert np.nanmax(rows.numeric) == 1e6, "the given rows stay as they are"


def test_off_still_turns_negatives_into_missing():
    rows = rows_of([*range(50), 1e6, -1])
    cleaned, report = removing(rows, signature_of("x", non_negative=("x",)), outliers="off")
    assert np.nanmax(cleaned.numeric) == 1e6
    assert report["negatives"] == {"x": 1}


@pytest.mark.parametrize("outliers", ["remove", "clip", "off"])
def test_no_numeric_feature_and_a_report_for_json(outliers):
    signature = make_signature((), ("plan",))
    rows = Rows(
        numeric=np.empty((3, 0), dtype=np.float32),
        categorical=np.array([["a"], ["b"], [""]], dtype=object),
        labels=np.array(["x", "y", "x"], dtype=object),
    )
    cleaned, report = removing(rows, signature, outliers=outliers)
    assert len(cleaned) == 3
    assert orjson.loads(orjson.dumps(report))["rows_out"] == 3


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="length"):
        Rows(
            numeric=np.empty((2, 1), dtype=np.float32),
            categorical=np.empty((2, 0), dtype=object),
            labels=np.array(["x"], dtype=object),
        )
