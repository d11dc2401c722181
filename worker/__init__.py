"""The trainer: Celery tasks and the retrain workflow."""

import shared  # noqa: F401 - before onnxruntime, which reads a variable that it sets
