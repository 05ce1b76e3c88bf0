"""The task of the ISBI 2012 challenge: counts that hold the slices themselves."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.metrics import rand
from jaxseg.tasks import membrane
from jaxseg.train.evaluate import make_evaluate
from jaxseg.train.mesh import data_mesh
from jaxseg.types import IGNORE

PALETTE = np.array([[200, 0, 0], [0, 0, 0]], np.uint8)
TASK = membrane.make_task(SimpleNamespace(classes=("membrane", "cell"), palette=PALETTE), "train")


def slices(count, size=(20, 24), canvas=(24, 32)):
    """A batch: cells 7 pixels wide, the last slice only fills up. Images hold what is predicted."""
    rng = np.random.default_rng(0)
    truth = np.full((count, *canvas), IGNORE)
    truth[:, : size[0], : size[1]] = np.arange(size[1]) % 8 != 0
    cell = np.where(truth == 0, 0.1, 0.9) + rng.uniform(-0.5, 0.5, truth.shape)
    return {
        "image": np.stack([cell] * 3, axis=-1).astype(np.float32),
        "segmentation": truth.astype(np.int32),
        "image_size": np.tile(np.array(size, np.int32), (count, 1)),
        "valid": np.arange(count) < count - 1,
    }


def predict(variables, image):
    """Takes an image for the probabilities of cells."""
    cell = image[..., 0].clip(0, 1)
    p = jnp.stack([1 - cell, cell], axis=-1)
    return {"probabilities": p, "segmentation": p.argmax(-1)}


def test_scores_of_many_devices_and_batches_are_those_of_the_slices():
    batch = slices(16)
    batches = [{name: x[8 * n : 8 * n + 8] for name, x in batch.items()} for n in (0, 1)]
    counts, _ = make_evaluate(predict, TASK, data_mesh())({}, batches)
    assert counts.valid.sum() == 15
    assert counts.matrix.sum() == 15 * 20 * 24

    seen = batch["image"][:15, :20, :24, 0].clip(0, 1)
    truth = batch["segmentation"][:15, :20, :24]
    found = TASK.score(counts)
    assert found["pixel_error"] == pytest.approx(1 - found["pixel_accuracy"], abs=1e-3)
    assert found["pixel_error"] == pytest.approx(np.mean((seen > 0.5) != truth), abs=1e-3)
    assert 0 < found["pixel_f_error"] < found["pixel_error"] < 0.2
    expected = rand.rand_error(seen, truth)[0]
    assert found["rand_error"] == pytest.approx(expected, abs=0.02)  # maps are kept in bytes
    assert expected > 0.05
    assert found["v_rand"] > 0.5
    assert 0.5 < found["mean_iu"] < 1


def test_a_perfect_prediction():
    batch = slices(2)
    batch["image"] = np.stack([batch["segmentation"] == 1] * 3, axis=-1).astype(np.float32)
    counts = jax.jit(TASK.measure)(predict({}, batch["image"]), batch)
    found = TASK.score(jax.tree.map(np.asarray, counts))
    wrong = {name: found[name] for name in ("pixel_error", "pixel_f_error", "rand_error")}
    assert set(wrong.values()) == {0.0}
    assert found["v_rand"] == found["mean_iu"] == 1


def test_padding_does_not_join_cells():
    """Beyond the picture "cell" is predicted, and would connect all cells of a slice."""
    batch = slices(2, size=(20, 24), canvas=(24, 24))
    cell = np.where(batch["segmentation"] == 0, 0.0, 1.0)
    assert (cell[:, 20:] == 1).all()
    batch["image"] = np.stack([cell] * 3, axis=-1).astype(np.float32)
    counts = TASK.measure(predict({}, batch["image"]), batch)
    assert TASK.score(jax.tree.map(np.asarray, counts))["rand_error"] == 0


def test_counts_add_up():
    batch = slices(3)
    counts = TASK.measure(predict({}, batch["image"]), batch)
    assert counts.probability.dtype == counts.segmentation.dtype == np.uint8
    counts = jax.tree.map(np.asarray, counts)
    both = TASK.add(counts, counts)
    assert both.matrix.dtype == np.int64
    np.testing.assert_array_equal(both.matrix, 2 * counts.matrix)
    assert both.probability.shape == (6, 24, 32)
    assert both.valid.tolist() == [True, True, False] * 2
    assert TASK.score(both) == pytest.approx(TASK.score(counts))
    assert "membrane" in TASK.report(both)
    assert TASK.figures(both)["confusion"].dtype == np.uint8


def test_pictures_are_those_of_any_segmentation():
    batch = slices(2)
    prediction = predict({}, jnp.asarray(batch["image"]))
    first = ({name: np.asarray(x)[0] for name, x in tree.items()} for tree in (batch, prediction))
    assert list(TASK.draw(*first)) == ["picture", "truth", "prediction", "errors"]


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"classes \('a', 'b', 'c'\); expected membrane and cell"):
        membrane.make_task(SimpleNamespace(classes=("a", "b", "c")), "train")
