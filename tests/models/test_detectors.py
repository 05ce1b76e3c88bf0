"""What holds for every detector: its losses are finite and count what they should, numbers of
objects do not recompile, padding is nothing, and eight devices train as one."""

from functools import cache, partial

import jax
import numpy as np
import optax
import pytest
from cases import slow_but
from detectors import OBJECTS, batch_with, no_objects
from networks import compiled_once, random_variables

from jaxseg.models import (
    faster_rcnn,
    fcos,
    keypoint_rcnn,
    mask_rcnn,
    retinanet,
    ssd,
    yolo,
    yolov3,
    yolox,
)
from jaxseg.train.mesh import make_parallel
from jaxseg.train.step import init_state, make_step
from jaxseg.types import MEAN, STD

SMALL = dict(backbone="resnet18", width=8, features=8)
BUILDS = {  # (build, options, settings)
    "faster_rcnn": (
        faster_rcnn.build,
        dict(
            heads=(mask_rcnn.mask_head(4, 8, 1), keypoint_rcnn.keypoint_head(3, 8, 1)),
            box_dense=(16,),
            **SMALL,
        ),
        dict(
            anchor_sizes=((8,), (16,), (32,), (64,), (128,)),
            rpn_samples=16,
            region_samples=16,
            sampling="first",
            proposals_per_level=(50, 50),
            proposals=(20, 20),
        ),
    ),
    "retinanet": (
        retinanet.build,
        dict(convolutions=1, **SMALL),
        dict(
            anchor_sizes=((8, 12), (16, 24), (32, 48), (64, 96), (128, 192)),
            candidates_per_level=50,
        ),
    ),
    "fcos": (
        fcos.build,
        dict(convolutions=1, norm="frozen", head_norm="none", **SMALL),
        dict(strides=(8, 16, 32, 64, 128), candidates_per_level=50),
    ),
    "ssd": (
        ssd.build,
        dict(width=8, extras=((128,), (128,))),
        dict(
            aspect_ratios=((2,), (2,), (2,), (2,)), scales=(0.1, 0.25, 0.5, 0.75, 1.0), steps=None
        ),
    ),
    "yolo": (
        yolo.build,
        dict(backbone="fast_yolo", width=2, stride=32, dense=(16,), dropout=0.0),
        {},
    ),
    "yolov3": (
        yolov3.build,
        dict(tiny=True, width=2, norm="none"),
        dict(anchors=((4, 6), (8, 8), (12, 20), (20, 12), (30, 30), (40, 60))),
    ),
    "yolox": (
        yolox.build,
        dict(size="tiny", width=0.125, norm="frozen"),
        dict(candidates=50, l1=True),
    ),
}
LOSSES = {
    "faster_rcnn": {"objectness", "rpn_box", "class", "box", "mask", "keypoint"},
    "retinanet": {"class", "box"},
    "fcos": {"class", "box", "centreness"},
    "ssd": {"class", "box"},
    "yolo": {"centre", "size", "object", "no_object", "class"},
    "yolov3": {"centre", "size", "object", "no_object", "class"},
    "yolox": {"box", "objectness", "class", "l1"},
}
OF_OBJECTS = {"faster_rcnn": "rpn_box", "yolo": "size", "yolov3": "class"}  # of others: "box"
HARD = OBJECTS | {"beyond the border": [[90, 60, 196, 164]]}
each = pytest.mark.parametrize("name", BUILDS)


def built(name, **more):
    build, options, settings = BUILDS[name]
    return build(4, settings={"detections": 10, **settings}, **options, **more)


@cache
def tiny(name):
    model = built(name)
    return model, random_variables(model, no_objects())


@cache
def step_of(name):
    model, variables = tiny(name)
    params = variables["params"]
    rest = {kind: x for kind, x in variables.items() if kind != "params"}

    @compiled_once
    @partial(jax.value_and_grad, has_aux=True)
    def step(params, batch):
        losses, _ = model.loss({"params": params, **rest}, batch, jax.random.key(1))
        return sum(mean.value() for mean in losses.values()), losses

    return partial(step, params), step


@cache
def predict_of(name):
    model, variables = tiny(name)
    return partial(compiled_once(model.predict), variables)


@each
@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("objects", HARD)
def test_losses_and_gradients_are_finite(name, objects, crowd):
    step, compiled = step_of(name)
    (loss, losses), gradients = step(batch_with(HARD[objects], crowd))
    assert set(losses) == LOSSES[name]
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    learned = objects not in ("none", "no area") and not crowd
    if name == "fcos" and objects in ("one pixel", "beyond the border"):
        learned = False  # no place lies in it, or near its middle
    assert (losses[OF_OBJECTS.get(name, "box")].total > 0) == learned
    assert compiled._cache_size() == 1


@each
def test_rows_that_only_fill_up_do_not_count(name):
    step, _ = step_of(name)
    batch, found = batch_with(OBJECTS["one"]), []
    for valid in (True, False):
        for shift in (0, 10):
            batch["boxes"][1, 0] = np.array([10, 10, 40, 50]) + shift
            batch["image"][1] = shift / 10 * batch["image"][0]
            batch["valid"][1] = valid
            (_, losses), _ = step(batch)
            found.append(jax.device_get(losses))
    both, moved, one, other = found
    for loss in LOSSES[name]:
        assert one[loss] == other[loss]
        assert 0 < one[loss].weight <= both[loss].weight
    assert any(both[loss].total != moved[loss].total for loss in LOSSES[name])
    assert any(one[loss].weight < both[loss].weight for loss in LOSSES[name])


@each
def test_predictions_are_described_by_types(name):
    found = predict_of(name)(no_objects()["image"], None)
    rows = {"boxes": (2, 10, 4)} | dict.fromkeys(("scores", "labels", "detection_mask"), (2, 10))
    if name == "faster_rcnn":
        rows |= {"proposals": (2, 20, 4), "proposal_scores": (2, 20), "proposal_mask": (2, 20)}
        rows |= {"masks": (2, 10, 28, 28), "keypoints": (2, 10, 3, 3)}
        rows |= {"keypoint_scores": (2, 10, 3), "masks_aligned": (2,)}
    assert {key: value.shape for key, value in found.items()} == rows
    assert (np.diff(found["scores"], axis=1) <= 0).all()
    there = np.asarray(found["detection_mask"])
    assert set(np.asarray(found["labels"])[there]) <= {1, 2, 3}


@each
def test_padding_changes_nothing(name):
    """What lies right of a picture, of either kind: told by its size, or found out."""
    predict, narrow = predict_of(name), np.full((2, 2), 64, np.int32)
    image, told = no_objects()["image"], []
    for padding in (0, (np.round(255 * MEAN) / 255 - MEAN) / STD):
        image[:, :, 64:] = padding
        seen, known = jax.device_get((predict(image, None), predict(image, narrow)))
        assert (seen["boxes"][..., 2] <= 64).all()
        for key, value in seen.items():  # of two programs, the same but for rounding
            np.testing.assert_allclose(value, known[key], rtol=1e-4, atol=1e-3, err_msg=key)
        told.append(known)
    jax.tree.map(np.testing.assert_array_equal, *told)


@pytest.mark.parametrize("name", slow_but(1, ["fcos", "retinanet", "faster_rcnn"]))
def test_any_size_is_padded_to_strides_that_are_whole(name):
    """An image of any size is one of multiples of 32, with zeros below and on the right."""
    predict, size = predict_of(name), np.full((2, 2), [50, 90], np.int32)
    image = no_objects()["image"]
    image[:, 50:] = image[:, :, 90:] = 0
    whole, cut = predict(image, size), predict(image[:, :50, :90], size)
    for key, value in whole.items():
        np.testing.assert_allclose(cut[key], value, rtol=1e-4, atol=1e-3, err_msg=key)


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_levels_have_equally_many_anchors(name):
    build, options, _ = BUILDS[name]
    with pytest.raises(ValueError, match=r"levels of \[1, 2\] sizes, expected one number"):
        build(4, settings={"anchor_sizes": ((8, 16), (32,), (64,), (128,), (256,))}, **options)


@each
def test_a_batch_without_objects_is_refused(name):
    """Not one whose pictures show none, but one that has no room for them."""
    model, variables = tiny(name)
    batch = {key: no_objects()[key] for key in ("image", "image_size", "valid")}
    with pytest.raises(ValueError, match=r"the batch has no boxes.*: see data\.max_objects"):
        jax.eval_shape(model.loss, variables, batch, jax.random.key(0))


@pytest.mark.parametrize("name", ["fcos", "yolox"])
def test_pieces_add_up_to_the_batch(name):
    """Also where one of them has nothing that is positive."""
    step, _ = step_of(name)
    batch = batch_with(OBJECTS["one"])
    batch["object_mask"][1] = False
    rows = np.ones(2, bool), np.array([True, False]), np.array([False, True])
    both, *pieces = (step(batch | {"valid": valid})[0][1] for valid in rows)
    for loss, whole in both.items():
        first, second = (piece[loss] for piece in pieces)
        assert second.weight == 0
        np.testing.assert_allclose(first.total + second.total, whole.total, rtol=1e-5)
        assert first.weight == whole.weight


@pytest.mark.slow
@each
def test_eight_devices_are_one(name):
    """Under pmap, the gradients of one device. (Under jit over a mesh, too, but there every device
    does the work of all where loops over rows are not cut.)"""
    _, variables = tiny(name)
    batch = batch_with([[10, 10, 40, 50], [50, 5, 90, 30]], rows=8)
    batch["boxes"] += np.arange(8, dtype=np.float32).reshape(-1, 1, 1)
    batch["object_mask"][3:6] = False  # as many positives on each device there are not
    before = [variables["params"]]
    for devices in (1, 8):
        parallel = make_parallel("pmap", jax.devices()[:devices])
        model = built(name, axis_name=parallel.axis_name)
        step = make_step(model, optax.sgd(1.0), seed=0, axis_name=parallel.axis_name)
        state = init_state(jax.tree.map(np.asarray, variables), optax.sgd(1.0), ema=False)
        moved, _ = parallel.compile(step)(parallel.put_state(state), parallel.put_batch(batch))
        before.append(parallel.fetch(moved.params))
    for start, one, eight in zip(*map(jax.tree.leaves, before), strict=True):
        step = np.abs(one - start).max()
        np.testing.assert_allclose(eight, one, atol=1e-6 + 1e-3 * step)
