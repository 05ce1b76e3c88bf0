from functools import partial
from itertools import islice

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.data import pipeline, transforms
from jaxseg.ops.padding import picture_mask

EXAMPLES = [
    {
        "image": np.full((12, 16, 3), 20 * i, np.uint8),
        "segmentation": np.full((12, 16), i % 3, np.uint8),
    }
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


def objects(count=2, **fields):
    """Squares of 4 by 4 pixels, 6 apart, in a picture of 12 by 16."""
    masks = np.zeros((count, 12, 16), bool)
    boxes = np.zeros((count, 4), np.float32)
    for i in range(count):
        left = 2 + 6 * (i % 2)
        masks[i, 4:8, left : left + 4] = True
        boxes[i] = left, 4, left + 4, 8
    return {
        "image": np.zeros((12, 16, 3), np.uint8),
        "segmentation": masks.any(0).astype(np.uint8),
        "boxes": boxes,
        "labels": np.ones(count, np.int32),
        "area": np.full(count, 16, np.float32),
        "masks": masks,
        "keypoints": np.ones((count, 2, 3), np.float32),
        "image_id": 7,
        "name": "two squares",
        **fields,
    }


def test_objects_and_border_weights():
    found = whole(objects(), max_objects=3, border_weights=(10.0, 5.0))
    assert found["masks"].shape == (3, 12, 2)
    assert found["object_mask"].tolist() == [True, True, False]
    between, far = found["pixel_weights"][5, 6], found["pixel_weights"][5, 15]
    assert between > 5 > far >= 1
    assert found["classes"].tolist() == [False, True, False]


def test_masks_are_packed_bits():
    example = objects(image=np.zeros((12, 13, 3), np.uint8))
    del example["segmentation"]
    example["masks"] = example["masks"][:, :, :13]
    found = pipeline.whole_example(example, image_size=(12, 13), num_classes=2, max_objects=3)
    assert found["masks"].dtype == np.uint8
    assert found["masks"].shape == (3, 12, 2)  # 13 pixels and 3 bits of padding
    assert found["masks"][0, 4].tolist() == [0b00111100, 0]
    unpacked = np.unpackbits(found["masks"], axis=-1, count=13)
    np.testing.assert_array_equal(unpacked[:2], example["masks"])
    assert not unpacked[2].any()


def test_batches_have_the_objects_that_are_asked_for():
    every = {"boxes", "labels", "object_mask", "area", "keypoints", "masks"}
    assert every & whole(objects()).keys() == set()
    assert every & whole(objects(), max_objects=2, masks=False).keys() == every - {"masks"}
    found = whole(objects(), max_objects=2)
    assert every & found.keys() == every
    assert found["area"].tolist() == [16, 16]
    assert whole(objects(5))["classes"].tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"two squares has 2 objects, data\.max_objects is 1"):
        whole(objects(), max_objects=1)


# Augmentations that need more than one example


def augmented(seed, example, **options):
    settings = dict(image_size=(12, 16), crop_size=(12, 16), scales=(1.0, 1.0), flip=False)
    settings |= dict(color={}, num_classes=3, max_objects=9, masks=True, others=[objects(1)])
    return pipeline.augment_example(example, np.random.default_rng(seed), **settings | options)


def test_pasted_objects_are_drawn_from_other_examples():
    """The example's squares stay where they are, the other's one is below them."""
    other = objects(1, image=np.full((12, 16, 3), 200, np.uint8), labels=np.array([2], np.int32))
    other["masks"] = np.roll(other["masks"], 4, axis=1)
    other["boxes"] = other["boxes"] + np.array([0, 4, 0, 4], np.float32)
    counts = []
    for seed in range(20):
        found = augmented(seed, objects(), copy_paste=1.0, others=[other])
        counts.append(int(found["object_mask"].sum()))
        assert found["labels"][:3].tolist() == [1, 1, 2 if counts[-1] == 3 else 0]
        bright = found["image"][..., 0] > 0
        assert bright.sum() == 16 * (counts[-1] - 2)
        assert found["image_size"].tolist() == [12, 16]
    assert sorted(set(counts)) == [2, 3]
    never = [augmented(seed, objects(), others=[other])["labels"].max() for seed in range(9)]
    assert set(never) == {1}


def test_no_more_is_pasted_than_there_is_room_for():
    others = [objects(2)]
    for seed in range(10):
        example = objects(4)
        example["masks"] = np.zeros_like(example["masks"])  # nothing is covered
        found = augmented(seed, example, copy_paste=1.0, others=others, max_objects=5)
        assert 4 <= found["object_mask"].sum() <= 5


def test_crowds_are_not_pasted():
    crowd = {**objects(1), "crowd": np.array([True])}
    example = {**objects(), "crowd": np.array([False, False])}
    for seed in range(5):
        found = augmented(seed, example, copy_paste=1.0, others=[crowd])
        assert not found["crowd"].any()
        assert found["object_mask"].sum() == 2


def test_pasting_needs_masks():
    example = objects()
    del example["masks"]
    with pytest.raises(ValueError, match=r"augment\.copy_paste .* masks; there are none"):
        augmented(0, example, copy_paste=1.0)


def test_a_mosaic_has_four_examples():
    """One of each colour, and their squares where the colours are."""
    colors = (50, 100, 150, 200)
    pictures = [objects(1, image=np.full((12, 16, 3), c, np.uint8)) for c in colors]
    seen = set()
    for seed in range(20):
        found = augmented(seed, pictures[0], mosaic=1.0, others=pictures[1:], resize=(24, 32))
        assert found["image"].shape == (12, 16, 3)
        corner = found["image"][0, 0, 0]
        np.testing.assert_allclose(corner, (50 / 255 - 0.485) / 0.229, rtol=1e-5)
        seen |= set(np.unique(found["image"][..., 0]))
        masks = np.unpackbits(found["masks"], axis=-1, count=16).astype(bool)
        for mask, box in zip(masks, found["boxes"], strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            if mask.any():
                inner = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                np.testing.assert_allclose(inner, box, atol=0.75)
    assert len(seen) == 4  # the pieces cover the canvas
    sizes = [pipeline.random_quarters(np.random.default_rng(seed), (12, 16)) for seed in range(99)]
    assert {size[0][0] for size in sizes} == set(range(3, 10))
    assert {size[0][1] for size in sizes} == set(range(4, 13))
    assert all(
        a[0] + c[0] == 12 and a[1] + b[1] == 16 and d == (c[0], b[1]) for a, b, c, d in sizes
    )


def test_a_mosaic_of_too_many_objects_is_not_made():
    for seed in range(5):
        found = augmented(seed, objects(2), mosaic=1.0, others=[objects(8)], max_objects=2)
        assert found["boxes"].tolist() == objects(2)["boxes"].tolist()


def test_a_mosaic_of_labelled_pixels():
    example = {name: objects()[name] for name in ("image", "segmentation", "image_id")}
    found = augmented(0, example, mosaic=1.0, others=[example], max_objects=0)
    assert found["segmentation"].shape == (12, 16)
    assert found["classes"].tolist() == [True, True, False]


def test_another_example_is_blended_with_it():
    """Half of each, and the objects of both where there is room."""
    dark, bright = (np.full((12, 16, 3), c, np.uint8) for c in (50, 151))
    other = objects(1, image=bright, labels=np.array([2], np.int32))
    for room, labels in ((3, [1, 1, 2]), (2, [1, 1])):
        found = augmented(0, objects(image=dark), mixup=1.0, others=[other], max_objects=room)
        assert found["labels"].tolist() == labels
        seen = (50 + 151) // 2 if room == 3 else 50
        np.testing.assert_allclose(found["image"][..., 0], (seen / 255 - 0.485) / 0.229, rtol=1e-5)
    never = [augmented(seed, objects(), others=[other])["labels"].max() for seed in range(9)]
    assert set(never) == {1}


def test_all_augmentations_at_once_depend_on_the_generator_alone():
    options = dict(
        resize=(10, 16), min_sizes=(8, 10), scales=(0.5, 2.0), flip=True, vertical_flip=True,
        rotate=True, expand=2.0, crop_overlaps=(0.1, 0.5, 1.0), mosaic=0.5, copy_paste=0.5,
        mixup=0.5, min_visible=0.1, elastic=(3, 0.5), others=[objects(i) for i in range(3)],
        color={"hue": 0.1}, border_weights=(10.0, 5.0),
    )  # fmt: skip
    for seed in range(8):
        assert_same(
            [augmented(seed, objects(), **options)], [augmented(seed, objects(), **options)]
        )
        assert augmented(seed, objects(), **options)["masks"].shape == (9, 12, 2)
    kinds = {augmented(seed, objects(), **options)["image"].tobytes() for seed in range(8)}
    assert len(kinds) == 8


def test_the_shorter_side_is_drawn():
    sizes = {
        tuple(augmented(s, objects(), resize=(12, 16), min_sizes=(6, 9))["image_size"].tolist())
        for s in range(20)
    }
    assert sizes == {(6, 8), (9, 12)}


def test_pictures_are_sampled_as_in_evaluation_but_smoothed_where_they_are_jittered():
    """At a third of their size: the pixel in the middle of nine, or the mean of the nine."""
    image = np.random.default_rng(0).integers(0, 256, (36, 48, 3), dtype=np.uint8)
    example = {"image": image, "segmentation": np.zeros((36, 48), np.uint8), "image_id": 0}
    options = dict(max_objects=0, resize=(12, 16))
    middle = transforms.normalize(image[1::3, 1::3])
    np.testing.assert_allclose(whole(example, resize=(12, 16))["image"], middle, atol=1e-5)
    np.testing.assert_allclose(augmented(0, example, **options)["image"], middle, atol=1e-5)
    jittered = augmented(0, example, scales=(0.999, 1.001), **options)["image"]
    mean = transforms.normalize(
        image.reshape(12, 3, 16, 3, 3).mean((1, 3)).round().astype(np.uint8)
    )
    np.testing.assert_allclose(jittered, mean, atol=0.01)


def test_turns():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    example = {"image": image, "segmentation": image[..., 0] % 3, "image_id": 0}
    options = dict(max_objects=0, image_size=(12, 12), crop_size=(12, 12))
    turned = [np.rot90(image, k) for k in range(4)]
    for switches, expected in (
        ({}, turned[:1]),
        ({"rotate": True}, turned),
        ({"vertical_flip": True}, [image, image[::-1]]),
        ({"rotate": True, "vertical_flip": True}, turned + [x[::-1] for x in turned]),
    ):
        seen = {augmented(s, example, **options, **switches)["image"].tobytes() for s in range(60)}
        assert seen == {transforms.normalize(x).tobytes() for x in expected}


def test_left_keypoints_stay_left():
    points = np.array([[[3, 5, 2], [5, 5, 2]]], np.float32)
    example = objects(1, keypoints=points)
    seen = set()
    for seed in range(10):
        found = augmented(seed, example, flip=True, keypoint_flip=(1, 0))
        seen.add(tuple(found["keypoints"][0, :, 0].tolist()))
    assert seen == {(3, 5), (11, 13)}


def test_expanded_pictures_lie_anywhere():
    example = objects(1, image=np.full((12, 16, 3), 255, np.uint8))
    spans = set()
    for seed in range(40):
        found = augmented(seed, example, expand=4.0, resize=(12, 16))
        bright = found["image"][..., 0] > 1
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        height, width = found["image_size"].tolist()
        assert abs(rows[-1] + 1 - height) <= 1
        assert abs(columns[-1] + 1 - width) <= 1
        spans.add((int(rows[0]), len(rows)))
    assert sum(start > 0 for start, _ in spans) >= 10  # away from the top
    assert min(length for _, length in spans) <= 4
    assert (0, 12) in spans  # half of the time it is left as it is


def test_parts_are_taken_of_the_expanded_picture():
    """Of a picture in the middle of nothing a part shows padding; of the picture itself it does
    not, but for the half of the time that nothing is expanded."""
    white = objects(1, image=np.full((12, 16, 3), 255, np.uint8))
    options = dict(crop_overlaps=(0.0,), resize="stretch")
    padded = []
    for seed in range(40):
        for expand in (1.0, 4.0):
            image = augmented(seed, white, expand=expand, **options)["image"]
            padded.append((expand, bool((image[..., 0] < 1).any())))
    assert not any(seen for expand, seen in padded if expand == 1)
    assert 10 <= sum(seen for _, seen in padded) <= 30


def test_colours_leave_padding_as_it_is():
    example = objects(1, image=np.full((12, 16, 3), 200, np.uint8))
    color = dict(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.3)
    for seed in range(5):
        image = augmented(seed, example, color=color, scales=(0.5, 0.5), resize=(12, 16))["image"]
        assert picture_mask(jnp.asarray(image)).sum() == 6 * 8


# Buckets

SHAPES = [
    (12, 16),
    (16, 12),
    (6, 8),
    (12, 10),
    (24, 32),
    (10, 5),
    (12, 16),
    (3, 4),
    (9, 9),
    (5, 10),
]
PICTURES = [{"image": np.full((*size, 3), i, np.uint8)} for i, size in enumerate(SHAPES)]
for picture in PICTURES:
    picture["segmentation"] = np.zeros(picture["image"].shape[:2], np.uint8)
BUCKETS = ((12, 16), (16, 12), (64, 64))  # the last is never the best
GROUPS = transforms.group_by_bucket(np.array(SHAPES), BUCKETS, (12, 16))
bucketed = dict(resize=(12, 16), buckets=BUCKETS, num_classes=3)
augment_into_bucket = partial(
    pipeline.augment_example, image_size=(1, 1), crop_size=(1, 1), scales=(0.5, 2.0), flip=True,
    color={"brightness": 0.5}, **bucketed,
)  # fmt: skip
whole_into_bucket = partial(pipeline.whole_example, image_size=(1, 1), **bucketed)


def bucket_batches(count, **kwargs):
    options = {"batch_size": 2, "seed": 0, "groups": GROUPS, **kwargs}
    return list(islice(pipeline.training_batches(PICTURES, augment_into_bucket, **options), count))


def test_a_batch_has_one_bucket():
    assert [group.tolist() for group in GROUPS] == [[0, 2, 4, 6, 7, 8, 9], [1, 3, 5], []]
    shapes = set()
    for batch in bucket_batches(20):
        tall = np.isin(batch["image_id"], GROUPS[1])
        assert tall.all() or not tall.any()
        assert batch["image"].shape == ((2, 16, 12, 3) if tall.all() else (2, 12, 16, 3))
        shapes.add(batch["image"].shape)
    assert len(shapes) == 2


def test_every_example_comes_about_once_an_epoch_whatever_its_bucket():
    ids = np.concatenate([batch["image_id"] for batch in bucket_batches(50)])
    counts = np.bincount(ids, minlength=10)
    assert counts.sum() == 100
    assert counts.min() >= 9
    assert counts.max() <= 11
    early = np.bincount(ids[:20], minlength=10)  # two epochs
    assert early.min() >= 1
    assert early.max() <= 3


def test_buckets_resume_and_are_shared_by_processes_and_workers():
    whole = bucket_batches(9)
    assert_same(bucket_batches(4, start=5), whole[5:])
    parts = [bucket_batches(4, start=2, process=(p, 2)) for p in range(2)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole[2:6])


def test_buckets_differ_in_what_is_drawn():
    """Two groups of the same pictures do not get the same augmentations."""
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    same = [{**EXAMPLES[5], "image": image}] * 8
    iterator = pipeline.training_batches(
        same, augment, batch_size=2, seed=0, groups=[np.arange(4), np.arange(4, 8)]
    )
    found = [image.tobytes() for batch in islice(iterator, 6) for image in batch["image"]]
    assert len(set(found)) == 12


def test_one_bucket_is_as_none():
    assert_same(batches(6, groups=[np.arange(10), np.arange(0)]), batches(6))


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_goes_bucket_after_bucket(count):
    parts = [
        list(
            pipeline.evaluation_batches(
                PICTURES, whole_into_bucket, batch_size=4, process=(p, count), groups=GROUPS
            )
        )
        for p in range(count)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in ("image_id", "valid")}
        for step in zip(*parts, strict=True)
    ]
    assert [b["image_id"][b["valid"]].tolist() for b in joined] == [
        [0, 2, 4, 6],
        [7, 8, 9],
        [1, 3, 5],
    ]
    assert [part["image"].shape[1:3] for part in parts[0]] == [(12, 16), (12, 16), (16, 12)]
    last = parts[0][-1]
    assert last["image_size"][0].tolist() == [16, 12]
    assert last["original_size"][:2].tolist() == [[16, 12], [12, 10]]
