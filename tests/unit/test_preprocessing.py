import numpy as np
import onnx
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from shared.signature import Signature
from tests.unit.samples import CATEGORICAL, NUMERIC, TEXTS, make_rows, make_signature
from worker.graphs import CHUNK
from worker.preprocessing import Preprocessor, fit
from worker.rows import Rows


def by_sklearn(train: Rows, test: Rows, signature: Signature, preprocessor: Preprocessor) -> np.ndarray:
    """The same preprocessing as a scikit-learn pipeline in float64."""
    forbidden = np.array([f.non_negative for f in signature.numeric])
    a = len(signature.numeric)
    numeric = make_pipeline(
        FunctionTransformer(lambda x: np.where((x.astype(float) < 0) & forbidden, np.nan, x.astype(float))),
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
    )
    one_hot = OneHotEncoder(
        categories=[list(c) for c in preprocessor.categories.values()],
        handle_unknown="ignore",
        sparse_output=False,
    )
    steps = []
    if signature.numeric:
        steps.append(("numeric", numeric, list(range(a))))
    if signature.categorical:
        width = a + len(signature.categorical)
        steps.append(("categorical", one_hot, list(range(a, width))))
    both = ColumnTransformer(steps)

    def table(rows: Rows) -> np.ndarray:
        return np.hstack([rows.numeric.astype(object), rows.categorical])

    both.fit(table(train))
    return both.transform(table(test)).astype(np.float64)


SIGNATURES = {
    "mixed": make_signature(),
    "numeric only": make_signature(categorical=()),
    "categorical only": make_signature(numeric=()),
    "all non-negative": make_signature(non_negative=NUMERIC),
    "many": make_signature([f"n{i}" for i in range(9)], [f"c {i}" for i in range(7)], ["n3", "n8"]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SIGNATURES)
def test_the_graph_scales_as_scikit_learn_does(name, seed):
    signature = SIGNATURES[name]
    train = make_rows(400, signature, seed=seed)
    unseen = make_rows(5000, signature, seed=seed + 100, texts=(*TEXTS, "never seen", "Basic", "basic "))
    preprocessor = fit(train, signature, max_categories=5)
    for rows in (train, unseen):
        expected = by_sklearn(train, rows, signature, preprocessor)
        scaled = preprocessor.transform(rows)
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-6)


def test_inputs_and_output_of_the_graph():
    def shapes(values) -> dict:
        return {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in values}

    graph = fit(make_rows(50, make_signature()), make_signature(), max_categories=50).graph.graph
    assert shapes(graph.input) == {"numeric": 3, "categorical": 2}
    assert shapes(graph.output) == {"scaled": 3 + 2 * len(TEXTS)}
    for kinds, name in (({"categorical": ()}, "numeric"), ({"numeric": ()}, "categorical")):
        signature = make_signature(**kinds)
        graph = fit(make_rows(50, signature), signature, max_categories=50).graph.graph
        assert list(shapes(graph.input)) == [name]


def test_a_feature_missing_everywhere_keeps_its_column():
    signature = make_signature()
    rows = make_rows(60, signature)
    rows.numeric[:, 1] = np.nan
    preprocessor = fit(rows, signature, max_categories=50)
    scaled = preprocessor.transform(rows)
    assert scaled.shape[1] == len(preprocessor.scaled_features)
    assert (scaled[:, 1] == 0).all()
    later = make_rows(5, signature, seed=1)
    later.numeric[:, 1] = 3
    assert (preprocessor.transform(later)[:, 1] == 3).all()


def test_negatives_do_not_bend_the_median():
    signature = make_signature(("spend",), (), ("spend",))
    numeric = np.array([[-100.0]] * 5 + [[10.0], [20.0], [30.0]], dtype=np.float32)
    rows = Rows(numeric=numeric, categorical=np.empty((8, 0), object), labels=np.array(["x"] * 8, object))
    scaled = fit(rows, signature, max_categories=50).transform(rows)[:, 0]
    assert scaled[0] == pytest.approx(scaled[6]), "a negative is filled with the median of the others, 20"


def test_a_constant_feature_is_scaled_by_one():
    signature = make_signature(("x",), ())
    rows = Rows(
        numeric=np.full((4, 1), 7, dtype=np.float32),
        categorical=np.empty((4, 0), object),
        labels=np.array(["x"] * 4, object),
    )
    preprocessor = fit(rows, signature, max_categories=50)
    assert preprocessor.scaled_features[0].scale == 1
    assert preprocessor.transform(rows).tolist() == [[0]] * 4


def test_epoch_times_keep_what_float32_left_of_them():
    signature = make_signature(("when",), ())
    times = np.float32(1.7e9) + np.arange(64, dtype=np.float32) * 128  # float32's own step there
    rows = Rows(
        numeric=times[:, None], categorical=np.empty((64, 0), object), labels=np.array(["x"] * 64, object)
    )
    exact = (times.astype(float) - times.astype(float).mean()) / times.astype(float).std()
    scaled = fit(rows, signature, max_categories=50).transform(rows)[:, 0]
    np.testing.assert_allclose(scaled, exact, rtol=1e-6, atol=1e-7)


def categorical_rows(values: list[str]) -> Rows:
    count = len(values)
    return Rows(
        numeric=np.empty((count, 0), dtype=np.float32),
        categorical=np.array(values, dtype=object)[:, None],
        labels=np.array(["x"] * count, dtype=object),
    )


def test_categories_are_the_most_frequent_then_by_text_and_the_rest_is_zeros():
    signature = make_signature((), ("brand",))
    rows = categorical_rows(["c", "b", "z", "a", "z", "b", "z", "d"])
    preprocessor = fit(rows, signature, max_categories=3)
    assert preprocessor.categories == {"brand": ("z", "b", "a")}
    scaled = preprocessor.transform(categorical_rows(["z", "b", "a", "c", "d", "new", "Z"]))
    assert scaled[:3].tolist() == np.eye(3).tolist()
    assert not scaled[3:].any()


def test_missing_is_a_category_of_its_own_when_it_was_seen():
    signature = make_signature((), ("brand",))
    preprocessor = fit(categorical_rows(["a", "a", "b", "b", "c", ""]), signature, max_categories=2)
    assert preprocessor.categories == {"brand": ("a", "")}
    assert preprocessor.transform(categorical_rows([""])).tolist() == [[0, 1]]
    preprocessor = fit(categorical_rows(["a", "b"]), signature, max_categories=2)
    assert preprocessor.transform(categorical_rows([""])).tolist() == [[0, 0]]


def test_a_category_counts_only_in_its_own_feature():
    signature = make_signature((), ("from", "to"))
    rows = Rows(
        numeric=np.empty((2, 0), np.float32),
        categorical=np.array([["x", "y"], ["x", "z"]], dtype=object),
        labels=np.array(["a", "b"], object),
    )
    preprocessor = fit(rows, signature, max_categories=9)
    assert preprocessor.categories == {"from": ("x",), "to": ("y", "z")}
    swapped = Rows(
        numeric=rows.numeric[:1],
        categorical=np.array([["y", "x"]], dtype=object),
        labels=rows.labels[:1],
    )
    assert not preprocessor.transform(swapped).any()


def test_scaled_features_describe_the_columns():
    signature = make_signature()
    rows = make_rows(300, signature)
    preprocessor = fit(rows, signature, max_categories=3)
    scaled = preprocessor.transform(rows)
    features = preprocessor.scaled_features
    assert [f.source for f in features] == [*NUMERIC, *[CATEGORICAL[0]] * 3, *[CATEGORICAL[1]] * 3]
    for column, feature in enumerate(features):
        if feature.category is None:
            raw = rows.numeric[:, NUMERIC.index(feature.source)].astype(float)
            usable = raw > 0
            expected = (raw[usable] - feature.mean) / feature.scale
            np.testing.assert_allclose(scaled[usable, column], expected, rtol=1e-5, atol=1e-6)
        else:
            raw = rows.categorical[:, CATEGORICAL.index(feature.source)]
            assert ((raw == feature.category) == scaled[:, column]).all()
            assert (feature.mean, feature.scale) == (0, 1)
    assert [(b.feature, b.start, b.stop) for b in preprocessor.blocks] == [
        (CATEGORICAL[0], 3, 6),
        (CATEGORICAL[1], 6, 9),
    ]


def test_the_same_rows_give_the_same_graph():
    signature = make_signature()
    rows = make_rows(200, signature)
    backwards = rows.take(np.arange(len(rows))[::-1])
    first, second = (fit(r, signature, max_categories=4) for r in (rows, backwards))
    assert first.categories == second.categories
    again = fit(rows, signature, max_categories=4)
    assert first.graph.SerializeToString() == again.graph.SerializeToString()


def test_chunks_and_no_rows():
    signature = make_signature()
    preprocessor = fit(make_rows(100, signature), signature, max_categories=4)
    rows = make_rows(CHUNK + 3, signature, seed=5)
    scaled = preprocessor.transform(rows)
    assert len(scaled) == CHUNK + 3
    assert (scaled[-1] == preprocessor.transform(rows.take(np.array([CHUNK + 2])))[0]).all()
    assert preprocessor.transform(rows.take(np.array([], dtype=int))).shape == (0, scaled.shape[1])


def test_nothing_to_fit_is_refused():
    signature = make_signature()
    rows = make_rows(5, signature)
    with pytest.raises(ValueError, match="at least one row"):
        fit(rows.take(np.zeros(5, dtype=bool)), signature, max_categories=4)


def test_the_graph_is_valid_onnx():
    signature = make_signature()
    preprocessor = fit(make_rows(50, signature), signature, max_categories=4)
    onnx.checker.check_model(preprocessor.graph, full_check=True)
