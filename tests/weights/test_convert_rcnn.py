"""Detectors on a feature pyramid under torchvision's names, and under those of its older files."""

import json
import re
import zlib
from functools import cache

import numpy as np
import pytest

from jaxseg.export import torchvision_twin
from jaxseg.weights.convert import flatten, from_torchvision, to_torchvision

V1 = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn")
V2 = ("fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2")
FAMILIES = dict.fromkeys((*V1, *V2), "rcnn_resnet_fpn")
FAMILIES |= dict.fromkeys(
    ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"), "retinanet_resnet_fpn"
)
FAMILIES |= {"fcos_resnet50_fpn": "fcos_resnet_fpn"}
OLDER = dict.fromkeys(V1, 18) | {"maskrcnn_resnet50_fpn": 26}  # keys with other names in old files
OLDER |= {"retinanet_resnet50_fpn": 28, "fcos_resnet50_fpn": 12}
COUNTER = "num_batches_tracked"


@pytest.fixture(scope="module")
def manifest(fixtures):
    @cache
    def read(name):
        """{key: (shape, dtype)}"""
        entries = json.loads((fixtures / f"torchvision/manifest/{name}.json").read_text())
        return {key: (tuple(shape), dtype) for key, shape, dtype in entries}

    return read


def counters(manifest):
    """Those of all batch norms, {key: (shape, dtype)}. Frozen ones have none in the manifest, but
    torchvision's norms of either kind read files that have them."""
    norms = [key.rpartition(".")[0] for key in manifest if key.endswith("running_mean")]
    return {f"{norm}.{COUNTER}": ((), "int64") for norm in norms}


def numbers(manifest):
    """A state dict of few but different values; windows of 7 divide its dense layers."""
    state = {}
    for key, (shape, dtype) in manifest.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        shape = (2, 3 * 49) if len(shape) == 2 else tuple(map(min, shape, (5, 4, 3, 2)))
        state[key] = np.zeros((), dtype) if COUNTER in key else rng.random(shape, np.float32)
    return state


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trips(manifest, name):
    state = numbers(manifest(name))
    variables, left_over, family = from_torchvision(state, name)
    assert (left_over, family) == ([], FAMILIES[name])
    back = to_torchvision(variables, family)
    assert back.keys() == state.keys() | counters(manifest(name)).keys()
    assert (back.keys() == state.keys()) == name.endswith("v2")
    for key, array in state.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array, err_msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_and_shapes_are_the_published_ones(manifest, name):
    """Also where the family is not known, as with `python -m jaxseg.export`."""
    state = {k: np.broadcast_to(np.zeros((), d), shape) for k, (shape, d) in manifest(name).items()}
    model = name.split("_")[0].replace("rcnn", "_rcnn")
    family, back = torchvision_twin(model, from_torchvision(state, name)[0])
    assert family == FAMILIES[name]
    shapes = {key: (array.shape, array.dtype.name) for key, array in back.items()}
    assert shapes == manifest(name) | counters(manifest(name))


def before(key):
    """What files of before torchvision 0.13 call it."""
    key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    if mask := re.match(r"roi_heads\.mask_head\.(\d)\.0\.(.*)", key):
        return f"roi_heads.mask_head.mask_fcn{int(mask[1]) + 1}.{mask[2]}"
    tower = re.match(r"(head\..*\.conv)\.(\d)\.0\.(.*)", key)
    return f"{tower[1]}.{2 * int(tower[2])}.{tower[3]}" if tower else key


def after(key, rules):
    """Its name now, by rules of (old pattern, new name)."""
    operations = {"-1": lambda number: number - 1, "/2": lambda number: number // 2}
    for pattern, name in rules:
        if match := re.match(pattern, key):

            def compute(part, match=match):
                return str(operations[part[2]](int(match[int(part[1])])))

            return match.expand(re.sub(r"\{\\(\d)(-1|/2)\}", compute, name))
    return key


@pytest.mark.parametrize("name", OLDER)
def test_older_files(fixtures, manifest, name):
    legacy = json.loads((fixtures / "torchvision/manifest/legacy_keys.json").read_text())["rules"]
    (rules,) = [rules for names, rules in legacy.items() if name in names.split("|")]
    state = numbers(manifest(name))
    old = {before(key): array for key, array in state.items()}
    assert {after(key, rules): key for key in old} == {key: before(key) for key in state}
    assert len(old.keys() - state.keys()) == OLDER[name]
    variables, left_over, family = from_torchvision(old, name)
    assert (left_over, family) == ([], FAMILIES[name])
    expected = flatten(from_torchvision(state, name)[0])
    found = flatten(variables)
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
