"""An exported detector, called without jaxseg, finds what the model finds."""

import json

import jax
import numpy as np
import pytest

from jaxseg import config as jaxseg_config
from jaxseg import export, run
from jaxseg.models import mask_rcnn
from jaxseg.types import MEAN, STD

SIZE = 64, 96
INFO = run.Info(
    "cells",
    ("background", "red", "white"),
    np.zeros((3, 3), np.uint8),
    (1.0, 1.0, 1.0),
    ("top", "middle", "bottom"),
    ((0, 1), (1, 2)),
)
SHARED = dict(
    backbone="resnet18",
    width=8,
    box_dense=(16,),
    settings=dict(
        anchor_sizes=((8,), (16,), (32,), (64,), (128,)),
        proposals_per_level=(50, 50),
        proposals=(20, 20),
        detections=10,
    ),
)
PYRAMID = SHARED | dict(
    features=8,
    norm="batch",
    neck_norm="batch",
    num_keypoints=3,
    keypoint_features=8,
    keypoint_convolutions=1,
    heads=(mask_rcnn.mask_head(3, 8, 1),),
)
SINGLE = SHARED | dict(
    backbone="vgg16",
    norm="none",
    pyramid=False,
    pooling="max",
    settings=SHARED["settings"] | {"anchor_sizes": ((16, 32, 64),)},
)


def opened(name, options):
    config = jaxseg_config.default()
    config.task = "detection"
    config.data.image_size = (32, 32)
    config.data.buckets = (SIZE, SIZE[::-1])
    config.data.resize = (60, 90)
    model = run.find_module("model", name).build(3, **options)
    variables = model.init(jax.random.key(0), {"image": np.zeros((1, 64, 64, 3), np.float32)})
    return run.Run(config, INFO, model, jax.device_get(variables), 7)


def compiled(function, *arguments):
    """Quickly, as it runs but once."""
    options = {"xla_backend_optimization_level": 0}
    return jax.device_get(jax.jit(function, compiler_options=options)(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("keypoint_rcnn", PYRAMID),
        ("faster_rcnn", SINGLE),
    ],
)
def test_an_exported_detector(name, options, tmp_path):
    """With a batch of any length, and a picture that does not fill its image."""
    detector = opened(name, options)
    told = export.export_run(detector, tmp_path / "model.stablehlo", None)
    signature = json.loads((tmp_path / "model.json").read_text())
    assert signature == json.loads(json.dumps(told))
    assert signature["input"] == {"shape": ["b", *SIZE, 3], "dtype": "uint8"}
    assert signature["outputs"]["boxes"] == {"shape": ["b", 10, 4], "dtype": "float32"}
    assert signature["outputs"]["detection_mask"] == {"shape": ["b", 10], "dtype": "bool"}
    assert signature["outputs"].keys() == signature["meaning"].keys()
    assert (signature["classes"], signature["step"]) == (["background", "red", "white"], 7)
    assert signature["platforms"] == ["cpu", "cuda", "tpu"]
    assert (signature["padding"], signature["resize"]) == ([124, 116, 104], [60, 90])
    if "keypoints" in signature["outputs"]:
        assert signature["keypoint_names"] == ["top", "middle", "bottom"]
        assert signature["skeleton"] == [[0, 1], [1, 2]]

    images = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    images[1, 40:] = images[1, :, 70:] = signature["padding"]
    artifact = bytearray((tmp_path / "model.stablehlo").read_bytes())
    found = compiled(jax.export.deserialize(artifact).call, images)
    normalized = ((images / 255 - MEAN) / STD).astype(np.float32)
    expected = compiled(detector.model.predict, detector.variables, normalized)
    assert found.keys() == {n for n in expected if not n.startswith("proposal")}
    assert found["detection_mask"].any(axis=1).all()
    for field, values in found.items():
        np.testing.assert_allclose(values, expected[field], atol=1e-4, err_msg=field)
    assert (found["boxes"][1] <= [70, 40, 70, 40]).all()
    assert (found["boxes"][0] > [70, 40, 70, 40]).any()
