import numpy as np
import orjson
import pytest
from sklearn import metrics

from tests.unit.samples import CATEGORICAL, NUMERIC, make_rows, make_signature
from worker.evaluation import evaluate, gate, importance
from worker.preprocessing import fit
from worker.training import encode, train

CLASSES = ("a", "b", "c")


def random_scores(count: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), size=count)


def labels_of(*texts: str) -> np.ndarray:
    return np.array(texts, dtype=object)


@pytest.mark.parametrize("classes", [("a", "b"), CLASSES])
def test_the_figures_are_scikit_learns(classes):
    scores = random_scores(200, len(classes))
    labels = np.array(classes, dtype=object)[np.random.default_rng(1).integers(len(classes), size=200)]
    found = evaluate(labels, scores, classes)
    truth, predicted = labels.astype(str), np.array(classes)[scores.argmax(axis=1)]
    assert found["rows"] == 200
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    for average in ("weighted", "macro"):
        expected = metrics.f1_score(truth, predicted, average=average)
        assert found[f"f1_{average}"] == pytest.approx(expected)
    if len(classes) > 2:
        area = metrics.roc_auc_score(truth, scores, multi_class="ovr", average="weighted")
    else:
        area = metrics.roc_auc_score(truth == "b", scores[:, 1])
    assert found["roc_auc"] == pytest.approx(area)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(truth, scores, labels=list(classes)))
    matrix = metrics.confusion_matrix(truth, predicted, labels=list(classes))
    assert found["confusion_matrix"] == {"labels": list(classes), "matrix": matrix.tolist()}
    report = metrics.classification_report(truth, predicted, output_dict=True)
    for text in classes:
        per_class = found["per_class"][text]
        assert per_class["precision"] == pytest.approx(report[text]["precision"])
        assert per_class["recall"] == pytest.approx(report[text]["recall"])
        assert per_class["f1"] == pytest.approx(report[text]["f1-score"])
        assert per_class["support"] == report[text]["support"]


def test_brier_is_the_sum_over_classes():
    found = evaluate(labels_of("a", "b"), np.array([[0.8, 0.2], [0.6, 0.4]]), ("a", "b"))
    assert found["brier"] == pytest.approx((0.2**2 + 0.2**2 + 0.6**2 + 0.6**2) / 2)


def test_a_class_that_the_model_lacks_is_wrong_there():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    found = evaluate(labels_of("a", "b", "new"), scores, ("a", "b"))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["per_class"]["new"]["f1"] == 0
    assert found["per_class"]["new"]["precision"] is None
    assert found["per_class"]["new"]["support"] == 1
    assert found["confusion_matrix"]["labels"] == ["a", "b", "new"]
    assert found["confusion_matrix"]["matrix"][2] == [1, 0, 0]
    expected = -(np.log(0.9) + np.log(0.8) + np.log(1e-15)) / 3
    assert found["log_loss"] == pytest.approx(expected)
    assert found["brier"] == pytest.approx((0.02 + 0.08 + 0.49 + 0.09 + 1) / 3)
    assert found["f1_weighted"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_a_class_without_holdout_rows_has_no_figure_and_does_not_pull_the_mean():
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
    found = evaluate(labels_of("a", "b", "a"), scores, CLASSES)
    assert found["per_class"]["c"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "roc_auc": None,
        "support": 0,
    }
    assert found["f1_macro"] == 1
    assert found["roc_auc"] == 1


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [(labels_of("a", "a"), {"roc_auc"}), (labels_of(), {"accuracy", "f1_weighted", "log_loss", "brier"})],
    ids=["one class", "no rows"],
)
def test_undefined_figures_are_null_and_json_holds_no_nan(labels, undefined):
    found = evaluate(labels, random_scores(len(labels), 3).reshape(-1, 3), CLASSES)
    assert all(found[name] is None for name in undefined)
    assert orjson.loads(orjson.dumps(found)) == found


def test_certain_and_wrong_is_a_finite_log_loss():
    found = evaluate(labels_of("b"), np.array([[1.0, 0.0]], dtype=np.float32), ("a", "b"))
    assert found["log_loss"] == pytest.approx(-np.log(1e-15))


def test_importance_is_summed_per_raw_feature():
    signature = make_signature()
    rows = make_rows(300, signature)
    preprocessor = fit(rows, signature, max_categories=50)
    matrix = preprocessor.transform(rows)
    model = train(matrix, encode(rows.labels, ("no", "yes")), ("no", "yes"), iterations=20, seed=0, threads=1)
    found = importance(model, preprocessor)
    assert set(found) == {*NUMERIC, *CATEGORICAL}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) == pytest.approx(100)
    # The label is made of the first category and the first number.
    assert set(list(found)[:2]) == {CATEGORICAL[0], NUMERIC[0]}
    orjson.dumps(found)


def scored(f1: float | None) -> dict:
    return {"f1_weighted": f1, "rows": 200}


@pytest.mark.parametrize(
    ("challenger", "champion", "publish"),
    [(0.9, 0.8, True), (0.80, 0.81, True), (0.8, 0.8, True), (0.799, 0.81, False), (0.1, 0.9, False)],
)
def test_the_gate_lets_a_challenger_through_that_is_not_worse_than_the_tolerance(
    challenger, champion, publish
):
    verdict = gate(scored(challenger), scored(champion), tolerance=0.01)
    assert verdict.publish is publish
    assert (verdict.challenger_f1, verdict.champion_f1) == (challenger, champion)
    assert f"{challenger:.4f}" in verdict.reason
    assert f"{champion:.4f}" in verdict.reason


def test_a_challenger_exactly_at_the_tolerance_passes_whatever_binary_makes_of_it():
    assert 0.33 - 0.03 > 0.30
    assert gate(scored(0.30), scored(0.33), tolerance=0.03).publish


def test_without_a_champion_the_gate_is_open():
    verdict = gate(scored(0.3), None, tolerance=0.01)
    assert verdict.publish
    assert verdict.champion_f1 is None
    assert "0.3000" in verdict.reason


def test_without_holdout_rows_a_champion_stays():
    verdict = gate(scored(None), scored(None), tolerance=0.01)
    assert not verdict.publish
    assert "no holdout rows" in verdict.reason


def test_a_champion_that_lacks_a_class_is_judged_on_its_rows_too():
    labels = labels_of(*["a"] * 6, *["b"] * 6, *["new"] * 8)
    old = np.array([[0.9, 0.1]] * 6 + [[0.1, 0.9]] * 6 + [[0.5, 0.5]] * 8)
    fresh = np.zeros((20, 3))
    fresh[np.arange(20), [0] * 5 + [1] + [1] * 6 + [2] * 8] = 1
    champion = evaluate(labels, old, ("a", "b"))
    challenger = evaluate(labels, fresh, ("a", "b", "new"))
    assert champion["f1_weighted"] < 0.6 < challenger["f1_weighted"]
    assert gate(challenger, champion, tolerance=0.01).publish
    assert not gate(champion, challenger, tolerance=0.01).publish
