import numpy as np
import onnx
import orjson
import pytest
from catboost import CatBoostClassifier
from onnx import numpy_helper

from shared.errors import ParityError
from shared.signature import Signature
from tests.unit.samples import TEXTS, make_rows, make_signature
from worker.balancing import balance
from worker.export import Exported, check_parity, export
from worker.graphs import load_session, run, score
from worker.preprocessing import Preprocessor, fit
from worker.training import encode, train

BINARY = ("no", "yes")
FOUR = ("Basic", "Family Plan", "Premium Plan", 'l\'"été"')
KINDS = {
    "mixed": make_signature(),
    "numeric only": make_signature(categorical=()),
    "categorical only": make_signature(numeric=()),
}


def trained(
    signature: Signature, classes: tuple[str, ...], mode: str = "none"
) -> tuple[CatBoostClassifier, Preprocessor]:
    rows = make_rows(300, signature, classes)
    preprocessor = fit(rows, signature, max_categories=5)
    y = encode(rows.labels, classes)
    balanced = balance(preprocessor.transform(rows), y, preprocessor, mode=mode, seed=0)
    model = train(
        balanced.matrix, balanced.y, classes, weights=balanced.weights, iterations=20, seed=0, threads=1
    )
    return model, preprocessor


def changed(graph: bytes, name: str, change) -> bytes:
    """The same graph with another value of an attribute of its trees."""
    model = onnx.load_from_string(graph)
    trees = next(n for n in model.graph.node if n.op_type == "TreeEnsembleClassifier")
    attribute = next(a for a in trees.attribute if a.name == name)
    change(attribute)
    return model.SerializeToString()


@pytest.mark.parametrize("classes", [BINARY, FOUR], ids=["2 classes", "4 classes"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_graphs_agree_with_the_model_on_rows_it_never_saw(kind, classes):
    signature = KINDS[kind]
    model, preprocessor = trained(signature, classes)
    exported = export(model, preprocessor, classes)
    rows = make_rows(5000, signature, classes, seed=9, texts=(*TEXTS, "never seen"))
    matrix = preprocessor.transform(rows)
    report = check_parity(exported, model, rows, matrix)
    assert report["rows"] == 5000
    assert report["max_difference"] < 1e-5
    expected = model.predict_proba(matrix)
    for scored in (
        score(load_session(exported.model_onnx), rows),
        run(load_session(exported.trees_onnx), {"scaled": matrix}),
    ):
        assert scored.dtype == np.float32
        np.testing.assert_allclose(scored, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["smote", "weights"])
def test_balanced_training_exports_exactly(mode):
    signature = KINDS["mixed"]
    model, preprocessor = trained(signature, FOUR, mode)
    rows = make_rows(500, signature, FOUR, seed=3)
    check_parity(export(model, preprocessor, FOUR), model, rows, preprocessor.transform(rows))


def test_one_row_scores_as_in_a_batch():
    signature = KINDS["mixed"]
    model, preprocessor = trained(signature, FOUR)
    session = load_session(export(model, preprocessor, FOUR).model_onnx)
    rows = make_rows(20, signature, FOUR, seed=4)
    together = score(session, rows)
    alone = np.vstack([score(session, rows.take(np.array([i]))) for i in range(20)])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_the_native_model_reads_back(tmp_path):
    signature = KINDS["mixed"]
    model, preprocessor = trained(signature, FOUR)
    matrix = preprocessor.transform(make_rows(50, signature, FOUR, seed=4))
    path = tmp_path / "model.cbm"
    path.write_bytes(export(model, preprocessor, FOUR).model_cbm)
    again = CatBoostClassifier().load_model(str(path))
    assert (again.predict_proba(matrix) == model.predict_proba(matrix)).all()


def test_a_session_reads_a_file_too(tmp_path):
    signature = KINDS["mixed"]
    model, preprocessor = trained(signature, BINARY)
    exported = export(model, preprocessor, BINARY)
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.model_onnx)
    rows = make_rows(5, signature, BINARY)
    assert (score(load_session(path), rows) == score(load_session(exported.model_onnx), rows)).all()


def test_graphs_have_one_output_each_and_say_their_classes():
    model, preprocessor = trained(KINDS["mixed"], FOUR)
    exported = export(model, preprocessor, FOUR)
    for graph, inputs in (
        (exported.model_onnx, ["numeric", "categorical"]),
        (exported.trees_onnx, ["scaled"]),
    ):
        session = load_session(graph)
        assert [i.name for i in session.get_inputs()] == inputs
        assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
            ("probabilities", "tensor(float)", ["n", 4])
        ]
        metadata = session.get_modelmeta().custom_metadata_map
        assert metadata["ratchet_format"] == "1"
        assert orjson.loads(metadata["ratchet_classes"]) == list(FOUR)
        onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)


def test_the_same_training_gives_the_same_graphs_byte_for_byte():
    first, second = (export(*trained(KINDS["mixed"], FOUR), FOUR) for _ in range(2))
    assert first.model_onnx == second.model_onnx
    assert first.trees_onnx == second.trees_onnx


def halve_a_leaf(attribute) -> None:
    attribute.floats[:] = [w + 0.5 if i % 2 else w for i, w in enumerate(attribute.floats)]


def one_vs_all(attribute) -> None:
    attribute.s = b"LOGISTIC"


@pytest.mark.parametrize("graph", ["model_onnx", "trees_onnx"])
@pytest.mark.parametrize(
    ("attribute", "change"), [("class_weights", halve_a_leaf), ("post_transform", one_vs_all)]
)
def test_a_tampered_graph_is_refused(graph, attribute, change):
    signature = KINDS["mixed"]
    model, preprocessor = trained(signature, FOUR)
    exported = export(model, preprocessor, FOUR)
    rows = make_rows(50, signature, FOUR, seed=2)
    parts = {name: getattr(exported, name) for name in ("model_onnx", "trees_onnx", "model_cbm")}
    parts[graph] = changed(parts[graph], attribute, change)
    with pytest.raises(ParityError, match=graph.replace("_", r"\.")):
        check_parity(Exported(**parts), model, rows, preprocessor.transform(rows))


def test_wrong_preprocessing_inside_the_graph_is_refused():
    signature = KINDS["mixed"]
    model, preprocessor = trained(signature, FOUR)
    exported = export(model, preprocessor, FOUR)
    graph = onnx.load_from_string(exported.model_onnx)
    mean = next(t for t in graph.graph.initializer if t.name == "mean")
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) + 1, "mean"))
    tampered = Exported(
        model_onnx=graph.SerializeToString(),
        trees_onnx=exported.trees_onnx,
        model_cbm=exported.model_cbm,
    )
    rows = make_rows(200, signature, FOUR, seed=2)
    with pytest.raises(ParityError, match=r"model\.onnx differs"):
        check_parity(tampered, model, rows, preprocessor.transform(rows))


def test_a_graph_that_answers_nan_is_refused():
    def nan(attribute) -> None:
        attribute.floats[:] = [np.nan] * len(attribute.floats)

    signature = KINDS["mixed"]
    model, preprocessor = trained(signature, FOUR)
    exported = export(model, preprocessor, FOUR)
    tampered = Exported(
        model_onnx=exported.model_onnx,
        trees_onnx=changed(exported.trees_onnx, "class_weights", nan),
        model_cbm=exported.model_cbm,
    )
    rows = make_rows(50, signature, FOUR, seed=2)
    with pytest.raises(ParityError, match="differs from the trained model on 50 of 50 rows"):
        check_parity(tampered, model, rows, preprocessor.transform(rows))


def test_parity_on_no_rows_proves_nothing():
    signature = KINDS["mixed"]
    model, preprocessor = trained(signature, BINARY)
    none = make_rows(5, signature).take(np.zeros(5, dtype=bool))
    with pytest.raises(ParityError, match="no rows"):
        check_parity(export(model, preprocessor, BINARY), model, none, preprocessor.transform(none))


def test_other_classes_than_the_model_has_are_refused():
    model, preprocessor = trained(KINDS["mixed"], BINARY)
    with pytest.raises(ParityError, match="classes"):
        export(model, preprocessor, FOUR)
