"""From a config to the batches of a detector."""

from itertools import islice

import numpy as np
import pytest
from runs import get_config

from jaxseg import pictures, run
from jaxseg.data import pipeline
from jaxseg.data.builders import Dataset

SIZES = [(20, 32), (32, 20), (20, 30), (30, 20), (24, 24), (16, 32), (20, 32), (10, 16)]


def dataset(counts=(1, 2, 3, 0, 1, 2, 3, 1)) -> Dataset:
    """Pictures of many shapes, each with its count of squares."""
    rng = np.random.default_rng(0)

    def example(size, count):
        corners = rng.integers(0, np.subtract(size, 6)[::-1], (count, 2), endpoint=True)
        boxes = np.concatenate([corners, corners + 6], axis=1).astype(np.float32).reshape(-1, 4)
        y, x = np.indices(size)
        inside = [(x >= a) & (x < c) & (y >= b) & (y < d) for a, b, c, d in boxes]
        return {
            "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
            "boxes": boxes,
            "labels": rng.integers(1, 3, count, dtype=np.int32),
            "area": np.full(count, 36, np.float32),
            "crowd": np.zeros(count, bool),
            "masks": np.array(inside, bool).reshape(count, *size),
            "name": f"picture {len(boxes)}",
        }

    examples = [example(size, count) for size, count in zip(SIZES, counts, strict=True)]
    return Dataset(
        name="squares",
        classes=("background", "red", "blue"),
        palette=np.zeros((3, 3), np.uint8),
        splits={"train": examples, "val": examples},
        pixel_counts={},
        skipped={},
        sizes={split: np.array(SIZES) for split in ("train", "val")},
    )


def detector_config():
    config = get_config()
    config.data.resize = (40, 64)
    config.data.buckets = ((40, 64), (64, 40))
    config.data.max_objects = 12
    config.augment.min_sizes = (32, 36, 40)
    config.augment.scales = (1.0, 1.0)
    config.augment.copy_paste = 0.5
    config.augment.mosaic = 0.25
    config.augment.min_visible = 0.1
    return config


def test_training_batches_of_buckets():
    config = detector_config()
    run.check_config(config)
    batches = list(islice(run.training_batches(config, dataset(), 0, (0, 1)), 6))
    again = list(islice(run.training_batches(config, dataset(), 4, (0, 1)), 2))
    for batch, same in zip(batches[4:], again, strict=True):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, same[name], err_msg=name)
    assert {batch["image"].shape for batch in batches} == {(8, 40, 64, 3), (8, 64, 40, 3)}
    for batch in batches:
        height, width = batch["image"].shape[1:3]
        assert batch["masks"].shape == (8, 12, height, width // 8)
        assert batch["boxes"].shape == (8, 12, 4)
        assert (batch["image_size"] <= (height, width)).all()
        reach = np.tile(batch["image_size"][:, None, ::-1], 2)
        assert (batch["boxes"] <= reach).all()  # also those of pasted objects
        masks = np.unpackbits(batch["masks"], axis=-1, count=width)
        assert (masks.any((2, 3)) == batch["object_mask"]).all()
    config.data.masks = False
    config.augment.copy_paste = 0.0
    (batch,) = islice(run.training_batches(config, dataset(), 0, (0, 1)), 1)
    assert "masks" not in batch
    assert batch["object_mask"].any()


def test_every_augmentation_is_switched_by_its_setting(monkeypatch):
    config, found = detector_config(), dataset()._replace(keypoint_flip=(1, 0))
    given = dict(
        scales=(0.1, 2.0), min_sizes=(24, 32), crop_overlaps=(0.5, 1.0), expand=4.0, flip=True,
        vertical_flip=True, rotate=True, mosaic=0.5, copy_paste=0.25, mixup=0.25, min_visible=0.3,
        elastic=(3, 5.0), brightness=0.1, contrast=0.2, saturation=0.3, hue=0.4,
        color_probability=0.6, channel_shuffle=0.7,
    )  # fmt: skip
    assert set(given) == set(config.augment)
    config.augment.update(given)
    run.check_config(config)
    monkeypatch.setattr(
        pipeline, "training_batches", lambda examples, augment, **_: iter([augment])
    )
    settings = next(run.training_batches(config, found, 0, (0, 1))).keywords
    flat = {**settings, **settings["color"]}
    assert {name: flat[name] for name in given} == given
    assert settings["keypoint_flip"] == (1, 0)
    assert settings["others"] is found.splits["train"]


def test_evaluation_needs_no_room_for_objects():
    config = detector_config()
    config.data.max_objects = 1
    found = dataset()
    batches = list(run.evaluation_batches(config, found, "val", (0, 1)))
    assert [batch["image"].shape for batch in batches] == [(8, 40, 64, 3), (8, 64, 40, 3)]
    ids = [batch["image_id"][batch["valid"]].tolist() for batch in batches]
    assert ids == [[0, 2, 4, 5, 6, 7], [1, 3]]
    assert batches[0]["image_size"][:6].tolist() == [
        [40, 64], [40, 60], [40, 40], [32, 64], [40, 64], [40, 64],
    ]  # fmt: skip
    assert set(batches[0]) == {
        "image", "image_id", "image_size", "original_size", "valid", "classes",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"picture [123] has \d+ objects, data\.max_objects is 1"):
        list(islice(run.training_batches(config, found, 0, (0, 1)), 2))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.resize", (800,), r"data\.resize is \(800,\), expected \(shorter, longer side\)"),
        ("data.resize", (1333, 800), r"data\.resize is \(1333, 800\), expected"),
        ("data.stretch", True, r"data\.stretch is True, expected False beside data\.resize"),
        ("data.buckets", ((8, 8), (0, 8)), r"data\.buckets is .*expected \(height, width\) pairs"),
        ("data.buckets", (8, 8), r"data\.buckets is \(8, 8\), expected \(height, width\) pairs"),
        ("augment.min_sizes", (0,), r"augment\.min_sizes is \(0,\), expected shorter sides"),
        ("augment.crop_overlaps", (1.5,), r"augment\.crop_overlaps is .*expected IoUs from 0 to 1"),
        ("augment.expand", 0.5, r"augment\.expand is 0\.5, expected a factor of 1 or more"),
        ("augment.mosaic", 2.0, r"augment\.mosaic is 2\.0, expected 0 to 1"),
        ("augment.copy_paste", -0.5, r"augment\.copy_paste is -0\.5, expected 0 to 1"),
        ("augment.mixup", 2.0, r"augment\.mixup is 2\.0, expected 0 to 1"),
        ("augment.min_visible", 1.5, r"augment\.min_visible is 1\.5, expected 0 to 1"),
        ("augment.color_probability", 1.5, r"augment\.color_probability is 1\.5, expected 0 to 1"),
        ("augment.channel_shuffle", -1.0, r"augment\.channel_shuffle is -1\.0, expected 0 to 1"),
        ("data.max_objects", 0, r"data\.max_objects is 0, expected more with augment\.copy_paste"),
    ],
)
def test_settings_that_cannot_be_are_named(field, value, message):
    config = detector_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        run.check_config(config)


def test_shorter_sides_are_drawn_only_with_resize():
    config = detector_config()
    config.data.resize = ()
    with pytest.raises(ValueError, match=r"augment\.min_sizes .*beside data\.resize"):
        run.check_config(config)


def test_stretched_pictures_fill_the_canvas():
    """In training, evaluation and prediction; boxes go with them."""
    config, found = get_config(), dataset()
    config.data.update(stretch=True, image_size=(48, 40), crop_size=(48, 40), max_objects=12)
    config.augment.update(scales=(1.0, 1.0), flip=False)
    run.check_config(config)
    (seen, *_), (learned, *_) = (
        list(run.evaluation_batches(config, found, "val", (0, 1))),
        list(islice(run.training_batches(config, found, 0, (0, 1)), 1)),
    )
    for batch in (seen, learned):
        assert batch["image"].shape == (8, 48, 40, 3)
        assert (batch["image_size"] == (48, 40)).all()
    for i, image_id in enumerate(learned["image_id"]):
        example = found.splits["train"][image_id]
        height, width = example["image"].shape[:2]
        stretched = example["boxes"] * np.tile([40 / width, 48 / height], 2)
        found_boxes = learned["boxes"][i][learned["object_mask"][i]]
        np.testing.assert_allclose(found_boxes, stretched, rtol=1e-5)
    example = found.splits["val"][0]
    canvas, size = pictures.on_canvas(example["image"], config.data)
    assert size == (48, 40)
    np.testing.assert_array_equal(canvas, seen["image"][0])
