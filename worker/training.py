"""Training: labels as numbers, and CatBoost on the scaled matrix."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
from catboost import CatBoostClassifier, CatBoostError

from shared.errors import JobSkipped
from worker.threads import count

Progress = Callable[[int, int], None]
"""Called with the trees fitted so far and the trees in all."""


def encode(labels: npt.NDArray[np.object_], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Labels as positions in `classes`, int64 (n,).

    Raises:
        ValueError: a label is not among the classes.
    """
    position = {text: number for number, text in enumerate(classes)}
    unknown = sorted({str(label) for label in labels if label not in position})
    if unknown:
        raise ValueError(f"labels that are no class: {', '.join(unknown[:5])}")
    return np.array([position[label] for label in labels], dtype=np.int64)


def train(
    matrix: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    classes: Sequence[str],
    *,
    weights: npt.NDArray[np.float32] | None = None,
    iterations: int,
    seed: int,
    threads: int,
    progress: Progress | None = None,
) -> CatBoostClassifier:
    """Fit CatBoost; the model's probabilities have one column per class, in the order of `classes`.

    Args:
        matrix: float32 (n, m), as the preprocessing graph gives it.
        y: int64 (n,), positions in `classes`. A class without rows gets probability 0.
        weights: float32 (n,), or None for equal weights.
        threads: 0 for as many as the container has cores.
        progress: called after each tree. What it raises stops the fit and is raised from here.

    Raises:
        JobSkipped: the rows have one class only, or every column is constant.
        KeyboardInterrupt: a signal stopped the fit. CatBoost can also swallow one between two trees and
            return the trees so far: a caller whom signals may meet holds them back (`Stop.held`).
    """
    if len(np.unique(y)) < 2:
        raise JobSkipped("the training rows have one class only")
    if not np.ptp(matrix, axis=0).any():
        raise JobSkipped("no feature varies in the training rows")
    # MultiClass for two classes too: Logloss models can carry a bias that ONNX applies twice.
    # SymmetricTree and integer labels: nothing else can be exported.
    model = CatBoostClassifier(
        loss_function="MultiClass",
        classes_count=len(classes),
        grow_policy="SymmetricTree",
        iterations=iterations,
        random_seed=seed,
        thread_count=count(threads),
        allow_writing_files=False,
        logging_level="Silent",
    )
    _fit(model, matrix, y, weights, _Watch(progress, iterations) if progress else None)
    return model


def _fit(
    model: CatBoostClassifier,
    matrix: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float32] | None,
    watch: "_Watch | None",
) -> None:
    try:
        model.fit(matrix, y, sample_weight=weights, callbacks=[watch] if watch else None)
    except CatBoostError as exc:
        # A signal that arrives in CatBoost's own callback code comes out as its error.
        if "KeyboardInterrupt" in str(exc):
            raise KeyboardInterrupt from exc
        raise
    if watch and watch.raised:
        raise watch.raised


class _Watch:
    """CatBoost's callback: passes progress on, and keeps what that raised."""

    def __init__(self, progress: Progress, iterations: int) -> None:
        self._progress = progress
        self._iterations = iterations
        self.raised: BaseException | None = None

    def after_iteration(self, info: SimpleNamespace) -> bool:
        """Go on?"""
        try:
            self._progress(info.iteration, self._iterations)
        # CatBoost would turn it (a lost claim, a stop) into a CatBoostError: kept, and raised by `train`.
        except BaseException as exc:  # noqa: BLE001
            self.raised = exc
        return self.raised is None
