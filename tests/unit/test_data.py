from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli.data import CLASSES, CLEAN_ROWS, PLANS_TARGET, churn, dataset, load_file, plans
from cli.source import Source
from shared.errors import DataError
from worker.inference import infer


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_more_plans_begin_with_the_same_plans() -> None:
    pd.testing.assert_frame_equal(plans(1700)[:700], plans(700))
    pd.testing.assert_frame_equal(plans(1700)[733:].reset_index(drop=True), plans(967, start=733))
    assert not plans(700).equals(plans(700, seed=1))


def test_plans_have_four_uneven_classes_gaps_and_outliers() -> None:
    frame = plans(3000)
    shares = frame[PLANS_TARGET].value_counts(normalize=True)
    assert set(shares.index) == set(CLASSES)
    assert shares.min() < 0.15 < 0.35 < shares.max()
    assert frame[["age", "device_brand", "avg_data_usage_gb"]].isna().any().all()
    assert frame["monthly_spend"].max() > 4 * frame["monthly_spend"].quantile(0.99)
    assert frame[PLANS_TARGET].notna().all()


def test_impossible_values_come_only_after_the_rows_of_the_bootstrap() -> None:
    numbers = plans(CLEAN_ROWS + 3000).select_dtypes("number")
    assert not (numbers[:CLEAN_ROWS] < 0).any().any()
    assert (numbers[CLEAN_ROWS:] < 0).sum().sum() > 20


def test_drift_moves_habits_and_what_suits_whom() -> None:
    still, moved = plans(3000), plans(3000, drift=1.0)
    assert moved["avg_data_usage_gb"].median() > 1.3 * still["avg_data_usage_gb"].median()
    assert (still[PLANS_TARGET] != moved[PLANS_TARGET]).mean() > 0.1


def test_plans_can_be_learned() -> None:
    from catboost import CatBoostClassifier
    from sklearn.metrics import f1_score

    frame = plans(4000)
    table = pd.get_dummies(frame.drop(columns=PLANS_TARGET), dtype=float).astype(float)
    truth = frame[PLANS_TARGET].to_numpy()
    model = CatBoostClassifier(iterations=30, learning_rate=0.3, random_seed=0, thread_count=1, verbose=False,
                               allow_writing_files=False).fit(table[:3000], truth[:3000])  # fmt: skip
    found = f1_score(truth[3000:], model.predict(table[3000:]).ravel(), average="weighted")
    assert 0.75 < found < 0.92


def test_churn_has_its_customers_and_no_row_names() -> None:
    frame, target = dataset("churn")
    assert frame.shape == (7043, 20)
    assert set(frame[target]) == {"Yes", "No"}
    assert "rownames" not in churn()


def test_a_file_needs_a_target(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x,y\n1,a\n2,b\n")
    assert dataset(str(path), "y")[1] == "y"
    with pytest.raises(DataError, match="--target"):
        dataset(str(path))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_cells_come_as_they_are_written(tmp_path: Path, separator: str) -> None:
    text = "\ufeffcode,amount,name\n007,1.50,None\n012,,O'Neill\n".replace(",", separator)
    frame = load_file(write(tmp_path / "a.csv", text))
    assert frame["code"].tolist() == ["007", "012"]
    assert frame["amount"][0] == "1.50"
    assert frame["amount"].isna().tolist() == [False, True]
    assert frame["name"].tolist() == ["None", "O'Neill"]


def test_csv_and_parquet_of_the_same_rows_mean_the_same(tmp_path: Path) -> None:
    frame = plans(600)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    found = [infer(load_file(tmp_path / name), target=PLANS_TARGET) for name in ("a.csv", "a.parquet")]
    assert found[0] == found[1] == infer(frame, target=PLANS_TARGET)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("empty.csv", b"", "empty"),
        ("head.csv", b"a,b\n", "no row"),
        ("twice.csv", b"a,b,a\n1,2,3\n", "used twice: 'a'"),
        ("wide.csv", b"a,b\n1,2,3\n4,5,6\n", "not a CSV file that can be read"),
        ("latin.csv", "a,b\nü,1\n".encode("latin-1"), "UTF-8"),
        ("binary.csv", b"a,b\n\x00\x01", "neither CSV nor Parquet"),
        ("sheet.xlsx", b"PK\x03\x04abc", "neither CSV nor Parquet"),
        ("broken.parquet", b"PAR1 and no more", "not a Parquet file"),
        ("text.parquet", b"a,b\n1,2\n", "neither CSV nor Parquet"),
        (300 * "x", None, "can't be read"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_file(path)
    assert name in error.value.detail


def test_a_source_is_remembered(tmp_path: Path) -> None:
    source = Source(name="plans", target=PLANS_TARGET, rows_used=700)
    source.save(tmp_path / "home")
    assert Source.load(tmp_path / "home") == source
    with pytest.raises(DataError, match="names no data"):
        Source.load(tmp_path)


def test_unseen_plans_go_on_where_the_bootstrap_and_the_last_traffic_ended() -> None:
    whole = plans(1000)
    first = Source(name="plans", target=PLANS_TARGET, rows_used=700).unseen(100)
    second = first.source.unseen(50)
    pd.testing.assert_frame_equal(first.frame, whole[700:800].reset_index(drop=True))
    pd.testing.assert_frame_equal(second.frame, whole[800:850].reset_index(drop=True))


def test_a_data_set_that_ends_starts_over_and_says_so() -> None:
    source = Source(name="churn", target="churn", rows_used=7000)
    once, more = source.unseen(43), source.unseen(50)
    assert once.frame.index.tolist() == list(range(7000, 7043))
    assert not once.note
    assert more.frame.index.tolist() == [*range(7000, 7043), *range(7000, 7007)]
    assert "sent again" in more.note
    assert "knows" in Source(name="churn", target="churn", rows_used=7043).unseen(5).note


def test_traffic_leaves_out_rows_that_the_signature_refuses(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, np.nan, 4.0], "y": ["a", "b", "a", None]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    features = infer(frame[:2], target="y").features
    unseen = Source(name=str(tmp_path / "a.csv"), target="y", rows_used=2).unseen(2)
    assert unseen.traffic(features) == ([{"x": 4.0}], [None])
