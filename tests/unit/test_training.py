import numpy as np
import pytest

from shared.errors import ClaimLost, JobSkipped
from tests.unit.samples import make_rows, make_signature
from worker.preprocessing import fit
from worker.training import encode, train

CLASSES = ("no", "yes")


def scaled(classes: tuple[str, ...] = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    signature = make_signature()
    rows = make_rows(300, signature, classes)
    return fit(rows, signature, max_categories=50).transform(rows), encode(rows.labels, classes)


def test_labels_become_positions_in_the_classes():
    labels = np.array(["b", "a", "c", "b"], dtype=object)
    y = encode(labels, ["a", "b", "c"])
    assert y.tolist() == [1, 0, 2, 1]
    assert y.dtype == np.int64
    with pytest.raises(ValueError, match="no class: c"):
        encode(labels, ["a", "b"])


@pytest.mark.parametrize("classes", [CLASSES, ("a", "b", "c", "d")])
def test_the_model_learns_and_its_columns_are_the_classes(classes):
    matrix, y = scaled(classes)
    model = train(matrix, y, classes, iterations=20, seed=0, threads=1)
    probabilities = model.predict_proba(matrix)
    assert probabilities.shape == (300, len(classes))
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert (probabilities.argmax(axis=1) == y).mean() > 0.7
    assert model.get_all_params()["loss_function"] == "MultiClass"


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    matrix, y = scaled()
    first, again, other = (
        train(matrix, y, CLASSES, iterations=5, seed=seed, threads=1).predict_proba(matrix)
        for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_nothing_is_written_to_the_working_directory(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    train(*scaled(), CLASSES, iterations=2, seed=0, threads=1)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_progress_is_told_after_every_tree():
    told: list[tuple[int, int]] = []
    train(
        *scaled(),
        CLASSES,
        iterations=3,
        seed=0,
        threads=1,
        progress=lambda done, of: told.append((done, of)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("raised", [ClaimLost("another worker has it"), KeyboardInterrupt()])
def test_what_progress_raises_stops_the_fit_as_it_is(raised):
    told: list[int] = []

    def progress(done: int, _of: int) -> None:
        told.append(done)
        if done == 2:
            raise raised

    with pytest.raises(type(raised)) as caught:
        train(*scaled(), CLASSES, iterations=30, seed=0, threads=1, progress=progress)
    assert caught.value is raised
    assert told == [1, 2]


def test_weights_move_the_probabilities_towards_their_class():
    matrix, y = scaled()
    heavy = np.where(y == 1, 20, 1).astype(np.float32)
    plain, weighted = (
        train(matrix, y, CLASSES, weights=w, iterations=10, seed=0, threads=1).predict_proba(matrix)[:, 1]
        for w in (None, heavy)
    )
    assert weighted.mean() > plain.mean() + 0.05


def test_a_class_without_rows_gets_probability_zero():
    matrix, y = scaled()
    model = train(matrix, y, ("no", "yes", "zz"), iterations=2, seed=0, threads=1)
    assert model.predict_proba(matrix)[:, 2].tolist() == [0] * 300


def test_one_class_or_no_varying_feature_is_nothing_to_train_on():
    matrix, y = scaled()
    with pytest.raises(JobSkipped, match="one class"):
        train(matrix, np.zeros_like(y), CLASSES, iterations=2, seed=0, threads=1)
    with pytest.raises(JobSkipped, match="no feature varies"):
        train(np.ones_like(matrix), y, CLASSES, iterations=2, seed=0, threads=1)
