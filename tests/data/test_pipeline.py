from functools import partial
from itertools import islice

import numpy as np
import pytest

from jaxseg.data import pipeline

EXAMPLES = [
    {"image": np.full((12, 16, 3), i, np.uint8), "segmentation": np.full((12, 16), i % 3, np.uint8)}
    for i in range(10)
]
FINISH = dict(image_size=(12, 16), num_classes=3)
augment = partial(
    pipeline.augment_example,
    crop_size=(8, 8),
    scales=(0.5, 2.0),
    flip=True,
    color={"brightness": 0.5},
    **FINISH,
)
whole = partial(pipeline.whole_example, **FINISH)


def batches(count, **kwargs):
    options = {"batch_size": 4, "seed": 0, **kwargs}
    iterator = pipeline.training_batches(EXAMPLES, augment, **options)
    found = list(islice(iterator, count))
    if hasattr(iterator, "close"):
        iterator.close()
    return found


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_every_epoch_has_every_example_in_another_order():
    ids = np.concatenate([batch["image_id"] for batch in batches(10)])
    epochs = ids.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_augmentation_differs_between_epochs():
    seen = [b["image"][i] for b in batches(10) for i in range(4) if b["image_id"][i] == 5]
    assert len(seen) == 4
    assert len({image.tobytes() for image in seen}) == 4


def test_a_resumed_pipeline_goes_on_where_it_was():
    assert_same(batches(4, start=3), batches(7)[3:])


def test_another_seed_gives_other_batches():
    ids = [np.concatenate([b["image_id"] for b in batches(3, seed=s)]).tolist() for s in (0, 1)]
    assert ids[0] != ids[1]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(count):
    parts = [batches(3, start=1, process=(p, count)) for p in range(count)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, batches(3, start=1))


def test_worker_processes_change_nothing():
    assert_same(batches(4, num_workers=2), batches(4))


def test_an_uneven_share_is_refused():
    with pytest.raises(ValueError, match="batch_size 4 is not a multiple of 3 processes"):
        batches(1, process=(0, 3))


@pytest.mark.parametrize(("batch_size", "count"), [(4, 1), (4, 2), (10, 1), (16, 2), (3, 1)])
def test_evaluation_counts_every_example_once(batch_size, count):
    parts = [
        list(
            pipeline.evaluation_batches(EXAMPLES, whole, batch_size=batch_size, process=(p, count))
        )
        for p in range(count)
    ]
    assert len({len(part) for part in parts}) == 1
    rows = [b for part in parts for b in part]
    assert all(len(b["valid"]) == batch_size // count for b in rows)
    counted = [int(i) for b in rows for i, v in zip(b["image_id"], b["valid"], strict=True) if v]
    assert sorted(counted) == list(range(10))


def test_batches_have_the_documented_keys():
    (batch,) = batches(1)
    shapes = {name: (x.shape, x.dtype.name) for name, x in batch.items()}
    assert shapes == {
        "image": ((4, 8, 8, 3), "float32"),
        "segmentation": ((4, 8, 8), "int32"),
        "classes": ((4, 3), "bool"),
        "image_id": ((4,), "int32"),
        "image_size": ((4, 2), "int32"),
        "original_size": ((4, 2), "int32"),
        "valid": ((4,), "bool"),
    }


def test_objects_and_border_weights():
    mask = np.zeros((2, 12, 16), bool)
    mask[0, 4:8, 2:6] = mask[1, 4:8, 8:12] = True
    example = {
        "image": np.zeros((12, 16, 3), np.uint8),
        "segmentation": mask.any(0).astype(np.uint8),
        "boxes": np.array([[2, 4, 6, 8], [8, 4, 12, 8]], np.float32),
        "labels": np.array([1, 1], np.int32),
        "masks": mask,
        "image_id": 7,
    }
    found = whole(example, max_objects=3, border_weights=(10.0, 5.0))
    assert found["masks"].shape == (3, 12, 16)
    assert found["object_mask"].tolist() == [True, True, False]
    between, far = found["pixel_weights"][5, 6], found["pixel_weights"][5, 15]
    assert between > 5 > far >= 1
    assert found["classes"].tolist() == [False, True, False]
