"""What all our ONNX graphs have in common: versions, sessions, scoring in chunks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper

from shared.signature import feed
from worker.rows import Rows
from worker.threads import count

# CatBoost writes its trees for ai.onnx.ml 2 and IR 3; graphs can be merged only when these are equal.
OPSETS = {"": 17, "ai.onnx.ml": 2}
IR_VERSION = 8
CHUNK = 8192
"""Rows scored at a time: a wide one-hot matrix of them stays within tens of megabytes."""


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A checked model of our IR version and opsets.

    Raises:
        onnx.checker.ValidationError: the graph is malformed.
    """
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(graph, producer_name="ratchet", opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def load_session(model: bytes | Path, threads: int = 1) -> ort.InferenceSession:
    """An ONNX Runtime session of a serialised graph or its file; `threads` 0: as many as there are cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = count(threads)  # its own 0 means the host's cores
    options.inter_op_num_threads = 1
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """The one output of a graph, float32 (n, ·), computed chunk by chunk."""
    return np.concatenate([session.run(None, chunk)[0] for chunk in _chunks(inputs)])


def score(session: ort.InferenceSession, rows: Rows) -> npt.NDArray[np.float32]:
    """What a graph that takes raw features makes of rows: float32 (n, ·)."""
    return run(session, feed(rows.numeric, rows.categorical))


def _chunks(inputs: dict[str, npt.NDArray[Any]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    rows = len(next(iter(inputs.values())))
    for start in range(0, max(rows, 1), CHUNK):  # no rows: one empty chunk, which has the right width
        yield {name: values[start : start + CHUNK] for name, values in inputs.items()}
