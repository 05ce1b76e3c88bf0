"""What all backbones share: sizes and numbers of features, and norms that are handed to them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import picture, random_variables

from jaxseg.backbones.alexnet import AlexNet
from jaxseg.backbones.googlenet import GoogLeNet
from jaxseg.backbones.mobilenet import FIRST_MAPS, MobileNetV3Large, make_divisible
from jaxseg.backbones.resnet import ResNet
from jaxseg.backbones.vgg import VGG16
from jaxseg.nn.norm import make_norm

BATCH = make_norm("batch", train=False)
BACKBONES = {
    "alexnet": AlexNet,
    "vgg16": VGG16,
    "googlenet": GoogLeNet,
    "resnet18": partial(ResNet, 18),
    "resnet50": partial(ResNet, 50),
    "mobilenet": MobileNetV3Large,
}
# Parameters of the published networks without their dense layers.
COUNTS = {
    "alexnet": 61_100_840 - 4096 * (9216 + 4096 + 1000 + 2) - 1000,
    "vgg16": 138_357_544 - 4096 * (25088 + 4096 + 1000 + 2) - 1000,
    "googlenet": 6_624_904 - 1025 * 1000,
    "resnet18": 11_689_512 - 513 * 1000,
    "resnet50": 25_557_032 - 2049 * 1000,
    "mobilenet": 5_483_032 - 961 * 1280 - 1281 * 1000,
}
# What these two gain with a norm: a scale more than the biases that they had.
GROUP_NORMS = {"alexnet": 1152, "vgg16": 4224}
# (rows, columns, channels) of a picture of 97×130, by the sizes that the layers give one another:
# convolutions ⌊(n + 2p − k)/s⌋ + 1, poolings the same, or rounded up.
SIZES = {
    "alexnet": {4: (23, 31, 64), 8: (11, 15, 64), 16: (5, 7, 192), 32: (2, 3, 256)},
    "vgg16": {
        2: (48, 65, 64),
        4: (24, 32, 128),
        8: (12, 16, 256),
        16: (6, 8, 512),
        32: (3, 4, 512),
    },
    "googlenet": {
        2: (49, 65, 64),
        4: (24, 32, 192),
        8: (12, 16, 480),
        16: (6, 8, 832),
        32: (3, 4, 1024),
    },
    "resnet18": {
        2: (49, 65, 64),
        4: (25, 33, 64),
        8: (13, 17, 128),
        16: (7, 9, 256),
        32: (4, 5, 512),
    },
    "resnet50": {
        2: (49, 65, 64),
        4: (25, 33, 256),
        8: (13, 17, 512),
        16: (7, 9, 1024),
        32: (4, 5, 2048),
    },
    "mobilenet": {
        2: (49, 65, 16),
        4: (25, 33, 24),
        8: (13, 17, 40),
        16: (7, 9, 112),
        32: (4, 5, 960),
    },
}


def shapes(backbone, *size):
    """({stride: shape of the features}, number of parameters)"""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    features, variables = jax.eval_shape(backbone.init_with_output, jax.random.key(0), image)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return {stride: x.shape[1:] for stride, x in features.items()}, count


@pytest.mark.parametrize("name", BACKBONES)
def test_sizes_at_odd_pictures_and_published_parameter_counts(name):
    norm = None if name in ("alexnet", "vgg16") else BATCH
    features, count = shapes(BACKBONES[name](norm=norm), 97, 130)
    assert features == SIZES[name]
    assert count == COUNTS[name]


@pytest.mark.parametrize(("name", "first_padding"), [("alexnet", 100), ("vgg16", 100)])
def test_poolings_that_keep_an_unfinished_window(name, first_padding):
    # As in FCN: AlexNet (16 + 200 − 11)//4 + 1 = 52, then ⌈(52 − 3)/2⌉ + 1 = 26, 13, 6 (rounded
    # down 25, 12, 5); VGG16 16 + 200 − 2 = 214, then halves rounded up, the last of 27 and 14.
    features, _ = shapes(BACKBONES[name](2, first_padding=first_padding, ceil_mode=True), 16, 16)
    rows = {stride: size[0] for stride, size in features.items()}
    expected = {
        "alexnet": {4: 52, 8: 26, 16: 13, 32: 6},
        "vgg16": {2: 107, 4: 54, 8: 27, 16: 14, 32: 7},
    }
    assert rows == expected[name]


def test_googlenet_pads_and_takes_published_colours():
    features, _ = shapes(GoogLeNet(4, first_padding=100, norm=BATCH), 21, 21)
    # (21 + 200 − 7)//2 + 1 = 108, then 54, 27, 13 and 7: windows of 3, 3, 3 and 2, rounded up
    assert [features[stride][0] for stride in (2, 4, 8, 16, 32)] == [108, 54, 27, 13, 7]
    image = jnp.asarray([0.485, 0.456, 0.406]).reshape(1, 1, 1, 3) * jnp.ones((1, 32, 32, 1))
    mean, std = jnp.asarray([0.485, 0.456, 0.406]), jnp.asarray([0.229, 0.224, 0.225])
    normalised = (image - mean.reshape(1, 1, 1, 3)) / std.reshape(1, 1, 1, 3)
    plain, transformed = GoogLeNet(4), GoogLeNet(4, transform_input=True)
    variables = random_variables(plain, image)
    found = jax.jit(lambda *args: transformed.apply(*args)[2])(variables, normalised)
    expected = jax.jit(lambda *args: plain.apply(*args)[2])(variables, 2 * image - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_a_frozen_norm_is_a_constant(name):
    backbone = BACKBONES[name](width=2, norm=make_norm("frozen", train=True))
    image = picture(1, 64, 64, 3)
    variables = random_variables(backbone, image)

    @jax.jit
    def gradients(variables):
        def total(params):
            changed = variables | {"params": params}
            features, state = backbone.apply(changed, image, mutable=["batch_stats"])
            return jnp.square(features[8]).mean(), state

        return jax.grad(total, has_aux=True)(variables["params"])

    grads, state = gradients(variables)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    for path, g in jax.tree.leaves_with_path(grads):
        if "norm" in path[-2].key:
            assert np.abs(g).max() == 0, jax.tree_util.keystr(path)
    first = grads["conv1"] if name == "alexnet" else grads["stem"]["conv"]
    assert np.isfinite(first["kernel"]).all()
    assert np.abs(first["kernel"]).max() > 1e-3


@pytest.mark.parametrize("name", BACKBONES)
def test_a_group_norm_has_no_statistics(name):
    backbone = BACKBONES[name](norm=make_norm("group", train=True))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert set(jax.eval_shape(backbone.init, jax.random.key(0), image)) == {"params"}
    assert shapes(backbone, 64, 64)[1] == COUNTS[name] + GROUP_NORMS.get(name, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet", {"epsilon": 1e-3, "momentum": 0.99}),
        ("googlenet", {"epsilon": 1e-3}),
        ("resnet50", {}),
    ],
)
def test_norms_are_set_as_published(name, expected):
    seen = []

    def norm(name, **options):
        seen.append(options)
        return BATCH(name=name, **options)

    shapes(BACKBONES[name](norm=norm), 32, 32)
    assert len(seen) > 40
    assert all(options == expected for options in seen)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_resnet_output_strides(output_stride):
    features, count = shapes(ResNet(50, output_stride=output_stride, norm=BATCH), 65, 129)
    for stride in (4, 8, 16, 32):
        kept = min(stride, output_stride)
        assert features[stride][:2] == (64 // kept + 1, 128 // kept + 1)
    assert count == COUNTS["resnet50"]


@pytest.mark.parametrize(("depth", "output_stride"), [(18, 8), (50, 8), (18, 16)])
def test_holes_compute_what_strides_do(depth, output_stride):
    """At the places that the strided network has, the dilated one gives the same, up to the
    border: margins of zeros correspond, too."""
    image = picture(1, 75, 90, 3)
    strided = ResNet(depth, 4, norm=BATCH)
    dense = strided.clone(output_stride=output_stride)
    variables = random_variables(strided, image)
    coarse = jax.jit(strided.apply)(variables, image)
    fine = jax.jit(dense.apply)(variables, image)
    for stride in (16, 32):
        step = max(stride // output_stride, 1)
        found = fine[stride][:, ::step, ::step]
        assert found.shape == coarse[stride].shape
        largest = np.abs(coarse[stride]).max()
        np.testing.assert_allclose(found, coarse[stride], rtol=0, atol=1e-5 * largest)


def test_mobilenet_output_strides_and_maps():
    mobilenet = MobileNetV3Large(maps=FIRST_MAPS, output_stride=16, norm=BATCH)
    features, count = shapes(mobilenet, 65, 129)
    assert {stride: size[:2] for stride, size in features.items()} == {
        2: (33, 65),
        4: (17, 33),
        8: (9, 17),
        16: (5, 9),
        32: (5, 9),
    }
    assert count == COUNTS["mobilenet"]
    image = picture(1, 64, 64, 3)
    small = MobileNetV3Large(2, norm=BATCH, maps={8: 4})

    @jax.jit
    def block4(variables, image):
        features, captured = small.apply(variables, image, capture_intermediates=True)
        return features, captured["intermediates"]["block4"]["__call__"][0]

    features, expected = block4(random_variables(small, image), image)
    assert set(features) == {8}
    np.testing.assert_array_equal(features[8], expected)
    with pytest.raises(ValueError, match="output_stride is 8"):
        shapes(MobileNetV3Large(output_stride=8), 32, 32)


def test_make_divisible():
    # 10 to 8 would take away a fifth; 18 (72/4) becomes 24 rather than 16, 30 (120/4) 32
    assert [make_divisible(n) for n in (1.0, 10.0, 15.0, 18.0, 24.0, 30.0, 168.0)] == [
        8,
        16,
        16,
        24,
        24,
        32,
        168,
    ]
