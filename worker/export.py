"""Export: the trained model as ONNX graphs, and the proof that they agree with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxmltools
import orjson
from catboost import CatBoostClassifier
from onnx import TensorProto, compose, helper

from shared.errors import ParityError
from worker.graphs import IR_VERSION, OPSETS, load_session, make_model, run, score
from worker.preprocessing import Preprocessor
from worker.rows import Rows

FORMAT = "1"
"""Version of the graphs' inputs, outputs and metadata."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One model, serialised three ways: both graphs give `probabilities` float (n, k).

    `model_onnx` takes raw features, `trees_onnx` takes `scaled` float (n, m), `model_cbm` is CatBoost's.
    """

    model_onnx: bytes
    trees_onnx: bytes
    model_cbm: bytes


def export(model: CatBoostClassifier, preprocessor: Preprocessor, classes: Sequence[str]) -> Exported:
    """Serialise a trained model; the same model gives the same graphs, byte for byte.

    Raises:
        ParityError: the model's classes are not 0..k-1 in order.
        onnx.checker.ValidationError: a graph is malformed.
    """
    trees = _trees(model, len(preprocessor.scaled_features), len(classes))
    merged = compose.merge_models(
        preprocessor.graph, trees, io_map=[("scaled", "scaled")], name="model", producer_name="ratchet"
    )
    del merged.opset_import[:]  # merging lists each side's, so every opset twice
    merged.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in OPSETS.items())
    merged.ir_version = IR_VERSION
    for graph in (trees, merged):
        helper.set_model_props(
            graph, {"ratchet_format": FORMAT, "ratchet_classes": orjson.dumps(list(classes)).decode()}
        )
        onnx.checker.check_model(graph, full_check=True)
    return Exported(
        model_onnx=merged.SerializeToString(deterministic=True),
        trees_onnx=trees.SerializeToString(deterministic=True),
        model_cbm=_native(model),
    )


def check_parity(
    exported: Exported,
    model: CatBoostClassifier,
    rows: Rows,
    matrix: npt.NDArray[np.float32],
    *,
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """Compare both graphs with the trained model on the same rows.

    Args:
        rows: raw rows, scored by `model_onnx`.
        matrix: the same rows scaled, float32 (n, m), scored by `trees_onnx` and by the model.

    Returns:
        `rows` and `max_difference`, the largest difference of a probability.

    Raises:
        ParityError: a probability differs by more than `tolerance`, or a label differs although the two
            best probabilities don't lie within it, or there are no rows to compare.
    """
    if not len(rows):
        raise ParityError("there are no rows to compare the exported graphs on")
    threads = model.get_param("thread_count") or -1
    expected = np.asarray(model.predict_proba(matrix, thread_count=threads), dtype=np.float64)
    scored = {
        "model.onnx": score(load_session(exported.model_onnx), rows),
        "trees.onnx": run(load_session(exported.trees_onnx), {"scaled": matrix}),
    }
    worst = max(_difference(name, expected, actual, tolerance) for name, actual in scored.items())
    return {"rows": len(rows), "max_difference": worst, "tolerance": tolerance}


def _trees(model: CatBoostClassifier, width: int, classes: int) -> onnx.ModelProto:
    """CatBoost's tree ensemble alone: `scaled` float (n, m) → `probabilities` float (n, k)."""
    # Without a name the converter fails: it passes None on as the graph's name.
    converted = onnxmltools.convert_catboost(model, name="trees")
    ensemble = next(n for n in converted.graph.node if n.op_type == "TreeEnsembleClassifier")
    labels = next(list(a.ints) for a in ensemble.attribute if a.name == "classlabels_int64s")
    if labels != list(range(classes)):
        raise ParityError(f"the trees' classes are {labels}, not 0 to {classes - 1}")
    ensemble.input[:] = ["scaled"]
    # The ZipMap behind it makes a dictionary per row: it is cut, the tensor before it is the output.
    ensemble.output[:] = ["label", "probabilities"]
    inputs = [helper.make_tensor_value_info("scaled", TensorProto.FLOAT, ["n", width])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", classes])]
    return make_model(helper.make_graph([ensemble], "trees", inputs, outputs))


def _native(model: CatBoostClassifier) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.cbm"
        model.save_model(str(path))
        return path.read_bytes()


def _difference(
    name: str, expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float32], tolerance: float
) -> float:
    if actual.shape != expected.shape:
        raise ParityError(f"{name} gives probabilities {actual.shape}, the model {expected.shape}")
    differences = np.abs(actual - expected).max(axis=1)
    # Not "any above": a NaN is above nothing.
    if not (differences <= tolerance).all():
        wrong = int((~(differences <= tolerance)).sum())
        raise ParityError(
            f"{name} differs from the trained model on {wrong} of {len(expected)} rows, "
            f"by up to {float(differences.max()):.2g} (allowed {tolerance:g})"
        )
    second, best = np.partition(expected, -2, axis=1)[:, -2:].T
    decided = best - second > tolerance
    if (actual.argmax(axis=1) != expected.argmax(axis=1))[decided].any():
        raise ParityError(f"{name} gives other labels than the trained model")
    return float(differences.max())
