"""Made-up labelled rows for the tests of the training core."""

from collections.abc import Sequence

import numpy as np

from shared.signature import MISSING, Feature, Signature
from worker.rows import Rows

# Names that converters and formats have stumbled over.
NUMERIC = ("hours-per week", 'said "so"', "l'âge")
CATEGORICAL = ("plan type", "device-brand")
TEXTS = ("basic", "Premium Plan", "o'neill", 'the "x"', "größe", "a-b", MISSING)


def make_signature(
    numeric: Sequence[str] = NUMERIC,
    categorical: Sequence[str] = CATEGORICAL,
    non_negative: Sequence[str] = NUMERIC[:1],
) -> Signature:
    """A signature whose kinds are mixed in order, as a file's columns are."""
    features = [Feature(name=name, kind="categorical") for name in categorical[:1]]
    features += [Feature(name=name, kind="numeric", non_negative=name in non_negative) for name in numeric]
    features += [Feature(name=name, kind="categorical") for name in categorical[1:]]
    return Signature(id=1, target="label", features=tuple(features))


def make_rows(
    count: int,
    signature: Signature,
    classes: Sequence[str] = ("no", "yes"),
    *,
    seed: int = 0,
    texts: Sequence[str] = TEXTS,
) -> Rows:
    """Rows with missing and negative values, whose label follows from the features, with noise."""
    rng = np.random.default_rng(seed)
    numeric = rng.normal(1, 2, size=(count, len(signature.numeric))) * [10.0**i for i in _powers(signature)]
    codes = rng.integers(len(texts), size=(count, len(signature.categorical)))
    signal = rng.normal(0, 0.5, size=count)
    if signature.numeric:
        signal += numeric[:, 0] / 2
    if signature.categorical:
        signal += codes[:, 0]
    cuts = np.quantile(signal, np.linspace(0, 1, len(classes) + 1)[1:-1])
    labels = np.array(classes, dtype=object)[np.searchsorted(cuts, signal)]
    numeric[rng.random(numeric.shape) < 0.1] = np.nan
    return Rows(
        numeric=numeric.astype(np.float32),
        categorical=np.array(texts, dtype=object)[codes],
        labels=labels,
    )


def _powers(signature: Signature) -> range:
    return range(len(signature.numeric))
