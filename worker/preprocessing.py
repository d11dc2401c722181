"""Preprocessing: impute, one-hot, scale, as one ONNX graph that training and serving share.

scikit-learn fits the figures; the graph is written here. skl2onnx would need the negatives' prefix
merged in as well, one branch of nodes per categorical column, and scales in float32. This graph has a
fixed number of nodes however many columns there are, and computes in float64, so that epoch times and
ids keep their digits until they are centred.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from shared.signature import MISSING, Signature
from worker.cleaning import negatives_to_missing
from worker.graphs import load_session, make_model, score
from worker.rows import Rows


@dataclass(frozen=True, kw_only=True)
class ScaledFeature:
    """One column of the scaled matrix: (raw - mean) / scale; a category's column is 0 or 1."""

    name: str
    mean: float
    scale: float
    source: str
    category: str | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """The columns start..stop-1 of the scaled matrix, which belong to one categorical feature."""

    feature: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Preprocessor:
    """Fitted preprocessing.

    `graph` takes `numeric` float (n, a) and `categorical` string (n, b), of which an input of width 0
    does not exist, and gives `scaled` float (n, m): the numerics in the signature's order, then a block
    of 0/1 columns per categorical feature. `categories` has the categories with a column, most frequent
    first; any other is all zeros.
    """

    graph: onnx.ModelProto
    scaled_features: tuple[ScaledFeature, ...]
    categories: dict[str, tuple[str, ...]]
    blocks: tuple[Block, ...]

    @property
    def numeric_width(self) -> int:
        """How many columns of the scaled matrix are numeric; they come first."""
        return self.blocks[0].start if self.blocks else len(self.scaled_features)

    def transform(self, rows: Rows) -> npt.NDArray[np.float32]:
        """The scaled matrix, float32 (n, m), computed by the graph that serves."""
        return score(self._session, rows)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return load_session(self.graph.SerializeToString())


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scaling:
    """Per numeric feature: what fills a gap, mean, scale: each float64 (a,)."""

    median: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]


def fit(rows: Rows, signature: Signature, *, max_categories: int) -> Preprocessor:
    """Fit preprocessing on training rows.

    A feature that is missing everywhere keeps its column (0 after scaling). Missing is a category of
    its own if it was seen, and counts among the `max_categories` of its feature.

    Raises:
        ValueError: there are no rows or no features.
    """
    if not len(rows) or not signature.features:
        raise ValueError("preprocessing needs at least one row and one feature")
    scaling = _fit_numeric(rows, signature)
    categories = {
        feature.name: _frequent(rows.categorical[:, column].tolist(), max_categories)
        for column, feature in enumerate(signature.categorical)
    }
    return Preprocessor(
        graph=_graph(signature, scaling, categories),
        scaled_features=(*_numeric_features(signature, scaling), *_category_features(categories)),
        categories=categories,
        blocks=_blocks(len(signature.numeric), categories),
    )


def _fit_numeric(rows: Rows, signature: Signature) -> _Scaling:
    if not signature.numeric:
        nothing = np.empty(0)
        return _Scaling(median=nothing, mean=nothing, scale=nothing)
    values = negatives_to_missing(rows, signature)[0].numeric.astype(np.float64)
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    scaler = StandardScaler().fit(imputer.fit_transform(values))
    return _Scaling(median=imputer.statistics_, mean=scaler.mean_, scale=scaler.scale_)


def _frequent(values: Sequence[str], most: int) -> tuple[str, ...]:
    """The categories that get a column: by frequency, then by text."""
    counts = Counter(values)
    ranked = sorted(counts, key=lambda text: (-counts[text], text))
    chosen = ranked[:most]
    if MISSING in counts and MISSING not in chosen:
        chosen[-1] = MISSING  # "not known" is not "something rare"
    return tuple(chosen)


def _numeric_features(signature: Signature, scaling: _Scaling) -> list[ScaledFeature]:
    return [
        ScaledFeature(name=feature.name, mean=float(mean), scale=float(scale), source=feature.name)
        for feature, mean, scale in zip(signature.numeric, scaling.mean, scaling.scale, strict=True)
    ]


def _category_features(categories: Mapping[str, Sequence[str]]) -> list[ScaledFeature]:
    return [
        ScaledFeature(name=f"{name}={text}", mean=0.0, scale=1.0, source=name, category=text)
        for name, texts in categories.items()
        for text in texts
    ]


def _blocks(start: int, categories: Mapping[str, Sequence[str]]) -> tuple[Block, ...]:
    blocks = []
    for name, texts in categories.items():
        blocks.append(Block(feature=name, start=start, stop=start + len(texts)))
        start += len(texts)
    return tuple(blocks)


def _graph(
    signature: Signature, scaling: _Scaling, categories: Mapping[str, Sequence[str]]
) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    inputs: list[onnx.ValueInfoProto] = []
    parts: list[str] = []
    if signature.numeric:
        inputs.append(_value("numeric", TensorProto.FLOAT, len(signature.numeric)))
        parts.append("scaled_numeric")
        nodes += _numeric_nodes()
        constants += _numeric_constants(signature, scaling)
    if signature.categorical:
        inputs.append(_value("categorical", TensorProto.STRING, len(signature.categorical)))
        parts.append("one_hot")
        nodes += _category_nodes(_vocabulary(categories))
        constants += _category_constants(categories)
    nodes.append(helper.make_node("Concat", parts, ["scaled"], axis=1))
    width = len(signature.numeric) + sum(map(len, categories.values()))
    output = _value("scaled", TensorProto.FLOAT, width)
    return make_model(helper.make_graph(nodes, "preprocessing", inputs, [output], constants))


def _value(name: str, kind: int, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["n", width])


def _constant(name: str, values: npt.NDArray[np.generic]) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def _numeric_nodes() -> list[onnx.NodeProto]:
    """Below zero where that can't be is missing; missing is the median; then (x - mean) / scale."""
    return [
        helper.make_node("Less", ["numeric", "zero"], ["below_zero"]),
        helper.make_node("And", ["below_zero", "non_negative"], ["impossible"]),
        helper.make_node("IsNaN", ["numeric"], ["absent"]),
        helper.make_node("Or", ["impossible", "absent"], ["unknown"]),
        helper.make_node("Cast", ["numeric"], ["precise"], to=TensorProto.DOUBLE),
        helper.make_node("Where", ["unknown", "median", "precise"], ["filled"]),
        helper.make_node("Sub", ["filled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["divided"]),
        helper.make_node("Cast", ["divided"], ["scaled_numeric"], to=TensorProto.FLOAT),
    ]


def _numeric_constants(signature: Signature, scaling: _Scaling) -> list[onnx.TensorProto]:
    return [
        _constant("zero", np.zeros(1, dtype=np.float32)),
        _constant("non_negative", np.array([f.non_negative for f in signature.numeric], dtype=bool)),
        _constant("median", scaling.median),
        _constant("mean", scaling.mean),
        _constant("scale", scaling.scale),
    ]


def _vocabulary(categories: Mapping[str, Sequence[str]]) -> list[str]:
    return sorted({text for texts in categories.values() for text in texts})


def _category_nodes(vocabulary: Sequence[str]) -> list[onnx.NodeProto]:
    """Text → number, one vocabulary for all columns; then one comparison per one-hot column."""
    return [
        helper.make_node(
            "LabelEncoder",
            ["categorical"],
            ["number"],
            domain="ai.onnx.ml",
            keys_strings=list(vocabulary),
            values_int64s=list(range(len(vocabulary))),
            default_int64=-1,
        ),
        helper.make_node("Gather", ["number", "column_of"], ["spread"], axis=1),
        helper.make_node("Equal", ["spread", "number_of"], ["is_category"]),
        helper.make_node("Cast", ["is_category"], ["one_hot"], to=TensorProto.FLOAT),
    ]


def _category_constants(categories: Mapping[str, Sequence[str]]) -> list[onnx.TensorProto]:
    numbers = {text: number for number, text in enumerate(_vocabulary(categories))}
    column_of = [column for column, texts in enumerate(categories.values()) for _ in texts]
    number_of = [numbers[text] for texts in categories.values() for text in texts]
    return [
        _constant("column_of", np.array(column_of, dtype=np.int64)),
        _constant("number_of", np.array(number_of, dtype=np.int64)),
    ]
