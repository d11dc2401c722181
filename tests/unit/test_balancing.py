from collections import Counter

import numpy as np
import orjson
import pytest

from tests.unit.samples import make_rows, make_signature
from worker.balancing import SAMPLERS, Sampler, balance
from worker.preprocessing import Preprocessor, fit
from worker.training import encode

CLASSES = ("basic", "family", "premium")
KINDS = {"mixed": {}, "numeric": {"categorical": ()}, "categorical": {"numeric": ()}}


def uneven(kind: str = "mixed", counts: tuple[int, ...] = (120, 40, 15)) -> tuple:
    """Scaled rows of a kind of signature with so many rows per class: (matrix, y, preprocessor)."""
    signature = make_signature(**KINDS[kind])
    rows = make_rows(400, signature, CLASSES)
    y = encode(rows.labels, CLASSES)
    chosen = np.concatenate([np.flatnonzero(y == n)[:count] for n, count in enumerate(counts)])
    preprocessor = fit(rows, signature, max_categories=4)  # of 7: "other" is frequent
    return preprocessor.transform(rows.take(chosen)), y[chosen], preprocessor


def one_hot_faults(matrix: np.ndarray, preprocessor: Preprocessor) -> int:
    """Rows with a block that is neither one category nor all zeros."""
    wrong = np.zeros(len(matrix), dtype=bool)
    for block in preprocessor.blocks:
        columns = matrix[:, block.start : block.stop]
        wrong |= ~np.isin(columns, (0, 1)).all(axis=1) | (columns.sum(axis=1) > 1)
    return int(wrong.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_smote_raises_every_class_to_the_largest_with_possible_rows(kind):
    matrix, y, preprocessor = uneven(kind)
    balanced = balance(matrix, y, preprocessor, mode="smote", seed=0, classes=CLASSES)
    assert Counter(balanced.y.tolist()) == {0: 120, 1: 120, 2: 120}
    assert balanced.matrix.shape == (360, matrix.shape[1])
    assert balanced.matrix.dtype == np.float32
    assert (balanced.matrix[: len(y)] == matrix).all(), "the given rows come first, unchanged"
    assert (balanced.y[: len(y)] == y).all()
    assert one_hot_faults(balanced.matrix, preprocessor) == 0
    assert balanced.weights is None
    assert balanced.report["method"] == SAMPLERS[kind].name
    assert balanced.report["synthetic"] == {"basic": 0, "family": 80, "premium": 105}
    assert not balanced.report["capped"]
    orjson.dumps(balanced.report)


def test_synthetic_rows_are_new_and_lie_within_their_class():
    matrix, y, preprocessor = uneven()
    balanced = balance(matrix, y, preprocessor, mode="smote", seed=0)
    numerics = preprocessor.numeric_width
    made = balanced.matrix[len(y) :][balanced.y[len(y) :] == 2]
    own = matrix[y == 2]
    assert (made[:, :numerics] >= own[:, :numerics].min(axis=0) - 1e-5).all()
    assert (made[:, :numerics] <= own[:, :numerics].max(axis=0) + 1e-5).all()
    assert len(np.unique(made[:, :numerics], axis=0)) > len(own)


def test_a_synthetic_category_is_one_that_its_class_has():
    matrix, y, preprocessor = uneven()
    block = preprocessor.blocks[0]
    matrix[y == 2, block.start : block.stop] = 0  # every row of the class is "other" here
    balanced = balance(matrix, y, preprocessor, mode="smote", seed=0)
    assert not balanced.matrix[balanced.y == 2, block.start : block.stop].any()


def test_numerics_that_are_all_alike_in_a_class_still_give_real_categories():
    matrix, y, preprocessor = uneven()
    matrix[y == 2, : preprocessor.numeric_width] = 1
    balanced = balance(matrix, y, preprocessor, mode="smote", seed=0)
    assert one_hot_faults(balanced.matrix, preprocessor) == 0
    assert (balanced.matrix[balanced.y == 2, : preprocessor.numeric_width] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rare", [1, 2, 3])
def test_a_rare_class_is_balanced_too(kind, rare):
    matrix, y, preprocessor = uneven(kind, (50, 30, rare))
    balanced = balance(matrix, y, preprocessor, mode="smote", seed=0, classes=CLASSES)
    assert Counter(balanced.y.tolist()) == {0: 50, 1: 50, 2: 50}
    assert one_hot_faults(balanced.matrix, preprocessor) == 0
    assert balanced.report["repeated"] == (["premium"] if rare == 1 else [])
    if rare == 1:
        assert len(np.unique(balanced.matrix[balanced.y == 2], axis=0)) == 1


def test_the_bound_on_synthetic_rows_serves_the_smallest_classes_first():
    matrix, y, preprocessor = uneven()
    sampler = Sampler(name="SMOTENC", base=10, synthetic=45)
    balanced = balance(matrix, y, preprocessor, mode="smote", seed=0, sampler=sampler)
    # 15 → 50 and 40 → 50 use up 45
    assert Counter(balanced.y.tolist()) == {0: 120, 1: 50, 2: 50}
    assert balanced.report["capped"]
    assert (balanced.report["target"], balanced.report["neighbours_among"]) == (50, 10)


def test_neighbours_are_looked_for_among_a_bounded_number_of_rows():
    matrix, y, preprocessor = uneven("numeric")
    sampler = Sampler(name="SMOTE", base=2, synthetic=1000)
    balanced = balance(matrix, y, preprocessor, mode="smote", seed=0, sampler=sampler)
    made = balanced.matrix[len(y) :][balanced.y[len(y) :] == 2]
    assert np.linalg.matrix_rank(made - made[0], tol=1e-4) == 1, "between two rows is a line"


def test_many_rows_are_made_in_rounds():
    matrix, y, preprocessor = uneven("numeric", (120, 60, 15))
    many, many_y = np.tile(matrix, (200, 1)), np.tile(y, 200)
    balanced = balance(many, many_y, preprocessor, mode="smote", seed=0)
    assert Counter(balanced.y.tolist()) == {0: 24_000, 1: 24_000, 2: 24_000}


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    matrix, y, preprocessor = uneven()
    first, again, other = (
        balance(matrix, y, preprocessor, mode="smote", seed=seed).matrix for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_weights_give_every_class_the_same_total():
    matrix, y, preprocessor = uneven()
    balanced = balance(matrix, y, preprocessor, mode="weights", seed=0, classes=CLASSES)
    assert balanced.matrix is matrix
    assert balanced.weights is not None
    totals = [balanced.weights[y == n].sum() for n in range(3)]
    assert totals == pytest.approx([len(y) / 3] * 3, rel=1e-5)
    assert balanced.report["weights"]["premium"] == pytest.approx(175 / (3 * 15), rel=1e-5)
    orjson.dumps(balanced.report)


def test_none_changes_nothing():
    matrix, y, preprocessor = uneven()
    balanced = balance(matrix, y, preprocessor, mode="none", seed=0)
    assert balanced.matrix is matrix
    assert balanced.y is y
    assert balanced.weights is None
    assert balanced.report["rows_out"] == 175


def test_balanced_classes_and_a_single_class_stay_as_they_are():
    matrix, y, preprocessor = uneven(counts=(20, 20, 20))
    assert len(balance(matrix, y, preprocessor, mode="smote", seed=0).y) == 60
    only = y == 0
    assert len(balance(matrix[only], y[only], preprocessor, mode="smote", seed=0).y) == 20
