"""The inference service: scores, records, answers."""

import shared  # noqa: F401 - before onnxruntime, which reads a variable that it sets
