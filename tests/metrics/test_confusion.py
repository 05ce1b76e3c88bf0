"""The confusion matrix and its scores against hand-worked values and scikit-learn."""

from functools import partial

import jax
import numpy as np
import pytest
from sklearn import metrics

from jaxseg.metrics.confusion import confusion_matrix, per_class, scores, table
from jaxseg.types import IGNORE

# Three classes; the third is predicted twice for the first, and never right.
MATRIX = np.array([[5, 1, 2], [0, 4, 0], [3, 1, 0]])


def random_pictures(classes=5, dtype=np.int32):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, (3, 17, 19))
    predicted = np.where(random.random(labels.shape) < 0.6, labels, random.permutation(labels))
    labels[random.random(labels.shape) < 0.1] = IGNORE
    return predicted.astype(dtype), labels.astype(dtype)


def test_rows_are_truth_and_columns_prediction():
    labels = np.array([[[0, 0, 1, 2, IGNORE]]])
    predicted = np.array([[[0, 1, 1, 0, 2]]])
    matrix = confusion_matrix(predicted, labels, 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    assert matrix.dtype == np.int32


def test_out_of_range_is_left_out():
    labels = np.array([[0, -1, 3, 1, 1, 1]])
    predicted = np.array([[0, 0, 0, -1, 3, IGNORE]])
    np.testing.assert_array_equal(confusion_matrix(predicted, labels, 3), np.diag([1, 0, 0]))


def test_nothing_counted():
    labels = np.full((2, 3, 4), IGNORE)
    np.testing.assert_array_equal(confusion_matrix(labels, labels, 3), np.zeros((3, 3)))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_counts_are_those_of_scikit_learn(dtype):
    predicted, labels = random_pictures(classes=21, dtype=dtype)
    counted = labels != IGNORE
    expected = metrics.confusion_matrix(labels[counted], predicted[counted], labels=range(21))
    np.testing.assert_array_equal(confusion_matrix(predicted, labels, 21), expected)
    compiled = jax.jit(confusion_matrix, static_argnums=2)(predicted, labels, 21)
    np.testing.assert_array_equal(compiled, expected)


def test_a_matrix_an_image_under_vmap():
    predicted, labels = random_pictures()
    matrices = jax.vmap(partial(confusion_matrix, num_classes=5))(predicted, labels)
    for matrix, p, y in zip(matrices, predicted, labels, strict=True):
        expected = metrics.confusion_matrix(y.ravel(), p.ravel(), labels=range(5))
        np.testing.assert_array_equal(matrix, expected)


def test_counts_beyond_two_to_the_24_are_exact():
    labels = np.zeros((1, 4097, 4097), np.uint8)  # 2^24 + 8193 pixels, one of class 1
    labels[0, 0, 0] = 1
    matrix = confusion_matrix(np.zeros_like(labels), labels, 2)
    np.testing.assert_array_equal(matrix, [[4097**2 - 1, 0], [1, 0]])


def test_scores_by_hand():
    # t = 8, 4, 4; n_ii = 5, 4, 0; predicted 8, 6, 2; unions 11, 6, 6.
    expected = {
        "pixel_accuracy": 9 / 16,
        "mean_accuracy": (5 / 8 + 1 + 0) / 3,
        "mean_iu": (5 / 11 + 4 / 6 + 0) / 3,
        "frequency_weighted_iu": (8 * 5 / 11 + 4 * 4 / 6) / 16,
    }
    assert scores(MATRIX) == pytest.approx(expected, rel=1e-12)


def test_classes_that_do_not_occur():
    # Class 1 neither occurs nor is predicted; class 2 is predicted only.
    matrix = np.array([[6, 0, 2], [0, 0, 0], [0, 0, 0]])
    columns = per_class(matrix)
    np.testing.assert_array_equal(columns["iu"], [0.75, np.nan, 0])
    np.testing.assert_array_equal(columns["accuracy"], [0.75, np.nan, np.nan])
    np.testing.assert_array_equal(columns["precision"], [1, np.nan, 0])
    np.testing.assert_array_equal(columns["pixels"], [8, 0, 0])
    assert scores(matrix) == {
        "pixel_accuracy": 0.75,
        "mean_accuracy": 0.75,
        "mean_iu": 0.375,
        "frequency_weighted_iu": 0.75,
    }


def test_scores_are_those_of_scikit_learn():
    predicted, labels = random_pictures()
    y, p = labels[labels != IGNORE], predicted[labels != IGNORE]
    matrix = confusion_matrix(predicted, labels, 5)
    columns, values = per_class(matrix), scores(matrix)
    options = {"average": None, "labels": range(5)}
    np.testing.assert_allclose(columns["iu"], metrics.jaccard_score(y, p, **options))
    np.testing.assert_allclose(columns["accuracy"], metrics.recall_score(y, p, **options))
    np.testing.assert_allclose(columns["precision"], metrics.precision_score(y, p, **options))
    assert values["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(y, p))
    assert values["mean_iu"] == pytest.approx(metrics.jaccard_score(y, p, average="macro"))
    assert values["frequency_weighted_iu"] == pytest.approx(
        metrics.jaccard_score(y, p, average="weighted")
    )


def test_perfect_and_empty():
    assert set(scores(np.diag([3, 5, 0])).values()) == {1.0}
    assert all(np.isnan(value) for value in scores(np.zeros((3, 3), int)).values())


def test_large_matrices_are_exact():
    matrix = np.array([[2**60, 1], [0, 3]])
    assert per_class(matrix)["pixels"].tolist() == [2**60 + 1, 3]


def test_table():
    matrix = np.array([[6, 0, 2], [0, 0, 0], [0, 0, 1234]])
    assert table(matrix, ("road", "sky", "bicyclist")).splitlines() == [
        "class             IU   accuracy  precision          pixels",
        "----------------------------------------------------------",
        "road            75.0       75.0      100.0               8",
        "sky                -          -          -               0",
        "bicyclist       99.8      100.0       99.8           1,234",
        "----------------------------------------------------------",
        "mean            87.4       87.5       99.9           1,242",
    ]
    with pytest.raises(ValueError, match="2 names for a matrix of 3 classes"):
        table(matrix, ("road", "sky"))
