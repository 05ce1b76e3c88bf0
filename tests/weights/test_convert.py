"""Tables of names, and layouts, between torchvision's networks and ours."""

import json
import zlib
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.conv import conv_transpose2d
from jaxseg.weights import convert
from jaxseg.weights.convert import flatten, from_torchvision, lacking, to_torchvision
from jaxseg.weights.files import WeightsError
from jaxseg.weights.tables import FAMILIES, TRANSPOSED, TWINS, Rule, translate

MANIFESTS = {
    "alexnet": "alexnet",
    "vgg16": "vgg16",
    "vgg16_bn": "vgg16_bn",
    "googlenet": "googlenet",
    "resnet18": "resnet",
    "resnet50": "resnet",
    "resnet101": "resnet",
    "mobilenet_v3_large": "mobilenet_v3_large",
    "fcn_resnet50": "fcn_resnet",
    "fcn_resnet101": "fcn_resnet",
    "deeplabv3_resnet50": "deeplabv3_resnet",
    "deeplabv3_resnet101": "deeplabv3_resnet",
    "deeplabv3_mobilenet_v3_large": "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large": "lraspp_mobilenet_v3_large",
    "ssd300_vgg16": "ssd_vgg16",
    "ssdlite320_mobilenet_v3_large": "ssdlite_mobilenet_v3_large",
    "smp_unet_resnet34": "smp_unet_resnet",
    "smp_deeplabv3plus_resnet50": "smp_deeplabv3plus_resnet",
}


@pytest.fixture(scope="module")
def manifest(fixtures):
    def read(name):
        """{key: (shape, dtype)}"""
        entries = json.loads((fixtures / f"torchvision/manifest/{name}.json").read_text())
        return {key: (tuple(shape), dtype) for key, shape, dtype in entries}

    return read


def small(shape):
    """A shape with as many axes, all different in length where they are not 1, that windows of 6
    and 7 still divide."""
    if len(shape) == 2:
        return 2, 3 * 36 * 49
    return tuple(min(length, longest) for length, longest in zip(shape, (5, 4, 3, 2), strict=False))


def zeros(manifest):
    """A state dict without memory."""
    return {key: np.broadcast_to(np.zeros((), d), shape) for key, (shape, d) in manifest.items()}


@pytest.fixture(scope="module")
def published(manifest):
    """name -> (variables without memory, left over, family)"""
    return cache(lambda name: from_torchvision(zeros(manifest(name)), name))


@pytest.mark.parametrize("name", MANIFESTS)
def test_round_trips(manifest, name):
    state = {}
    for key, (shape, dtype) in manifest(name).items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        counter = key.endswith("num_batches_tracked")
        state[key] = np.zeros((), dtype) if counter else rng.random(small(shape), np.float32)
    variables, left_over, family = from_torchvision(state, name)
    assert (left_over, family) == ([], MANIFESTS[name])
    assert set(variables) <= {"params", "batch_stats"}
    back = to_torchvision(variables, family)
    assert set(back) == set(state)
    for key, array in state.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array, err_msg=key)


@pytest.mark.parametrize("name", MANIFESTS)
def test_keys_and_shapes_are_the_published_ones(manifest, published, name):
    variables, _, family = published(name)
    back = to_torchvision(variables, family)
    assert {key: (a.shape, a.dtype.name) for key, a in back.items()} == manifest(name)
    assert lacking(back, family) == []


@pytest.mark.parametrize(
    ("name", "path", "shape"),
    [
        ("alexnet", "params/backbone/conv1/kernel", (11, 11, 3, 64)),
        ("alexnet", "params/head/fc6/kernel", (6, 6, 256, 4096)),
        ("alexnet", "params/head/classifier/bias", (1000,)),
        ("vgg16", "params/backbone/stage5_conv3/conv/bias", (512,)),
        ("vgg16", "params/head/fc6/kernel", (7, 7, 512, 4096)),
        ("vgg16", "params/head/fc7/kernel", (1, 1, 4096, 4096)),
        ("vgg16_bn", "params/backbone/stage3_conv1/conv/kernel", (3, 3, 128, 256)),
        ("vgg16_bn", "batch_stats/backbone/stage3_conv3/norm/var", (256,)),
        ("googlenet", "params/backbone/conv3/conv/kernel", (3, 3, 64, 192)),
        ("googlenet", "params/backbone/inception4e/branch3_reduce/conv/kernel", (1, 1, 528, 32)),
        ("googlenet", "params/backbone/inception4e/branch3/conv/kernel", (3, 3, 32, 128)),
        ("googlenet", "params/backbone/inception5b/branch4/norm/scale", (128,)),
        ("resnet18", "params/backbone/stem/conv/kernel", (7, 7, 3, 64)),
        ("resnet18", "params/backbone/stage2_block1/shortcut/conv/kernel", (1, 1, 64, 128)),
        ("resnet101", "params/backbone/stage3_block23/conv2/conv/kernel", (3, 3, 256, 256)),
        ("resnet101", "params/head/classifier/kernel", (1, 1, 2048, 1000)),
        ("mobilenet_v3_large", "params/backbone/block1/depthwise/conv/kernel", (3, 3, 1, 16)),
        ("mobilenet_v3_large", "params/backbone/block4/squeeze/kernel", (1, 1, 72, 24)),
        ("mobilenet_v3_large", "params/backbone/block15/excite/bias", (960,)),
        ("mobilenet_v3_large", "params/backbone/block7/project/norm/bias", (80,)),
        ("mobilenet_v3_large", "params/head/hidden/kernel", (1, 1, 960, 1280)),
        ("fcn_resnet50", "params/head/conv/conv/kernel", (3, 3, 2048, 512)),
        ("fcn_resnet50", "params/aux_head/classifier/kernel", (1, 1, 256, 21)),
        ("deeplabv3_resnet50", "params/aspp/branch4/conv/kernel", (3, 3, 2048, 256)),
        ("deeplabv3_resnet50", "params/aspp/pooling/conv/kernel", (1, 1, 2048, 256)),
        ("deeplabv3_resnet50", "params/head/conv/conv/kernel", (3, 3, 256, 256)),
        ("lraspp_mobilenet_v3_large", "params/head/scale/kernel", (1, 1, 960, 128)),
        ("lraspp_mobilenet_v3_large", "params/head/low_classifier/kernel", (1, 1, 40, 21)),
        ("smp_unet_resnet34", "params/up5/conv1/conv/kernel", (3, 3, 32, 16)),
        ("smp_deeplabv3plus_resnet50", "params/aspp/branch2/depthwise/kernel", (3, 3, 1, 2048)),
        ("smp_deeplabv3plus_resnet50", "params/aspp/branch1/conv/kernel", (1, 1, 2048, 256)),
        ("smp_deeplabv3plus_resnet50", "params/refine/pointwise/kernel", (1, 1, 256, 256)),
        ("smp_deeplabv3plus_resnet50", "params/fuse/depthwise/kernel", (3, 3, 1, 304)),
        ("smp_deeplabv3plus_resnet50", "batch_stats/low_level/norm/mean", (48,)),
    ],
)
def test_our_names(published, name, path, shape):
    assert flatten(published(name)[0])[path].shape == shape


def test_translate():
    forms = "layer{s}.{b}.conv{i}", "backbone/stage{s}_block{b+1}/conv{i}"
    assert translate("layer3.22.conv1", *forms) == "backbone/stage3_block23/conv1"
    assert translate("backbone/stage3_block23/conv1", *forms[::-1]) == "layer3.22.conv1"
    for name in ("layer3.22.conv", "layer3.022.conv1", "layer3.22.conv1.x", "layer3x22.conv1"):
        assert translate(name, *forms) is None
    assert translate("backbone/stage3_block0/conv1", *forms[::-1]) is None  # no layer3.-1


# Layouts, by hand.


def numbered(*shape):
    """Every value tells its index: [1, 2, 0] holds 120."""
    return sum(np.indices(shape)[a] * 10 ** (len(shape) - 1 - a) for a in range(len(shape)))


def test_layout_of_a_convolution():
    state = {"conv1.weight": numbered(4, 3, 2, 2), "bn1.weight": np.arange(4)}
    kernel = from_torchvision(state, "x")[0]["params"]["backbone"]["stem"]["conv"]["kernel"]
    assert kernel.shape == (2, 2, 3, 4)
    assert kernel[0, 1, 2, 3] == 3201  # of [F C kh kw]


def test_layout_of_a_depthwise_convolution():
    state = {"features.1.block.0.0.weight": numbered(5, 1, 3, 2)}
    variables, _, family = from_torchvision(state, "x")
    assert family == "mobilenet_v3_large"
    kernel = variables["params"]["backbone"]["block1"]["depthwise"]["conv"]["kernel"]
    assert kernel.shape == (3, 2, 1, 5)
    assert kernel[2, 1, 0, 4] == 4021


def test_layout_of_a_dense_layer():
    """classifier.0 sees 2 channels of 7×7, flattened channel by channel, row by row."""
    weight = np.arange(3 * 2 * 7 * 7).reshape(3, -1)
    state = {"features.28.weight": numbered(1, 1, 1, 1), "classifier.0.weight": weight}
    variables, _, family = from_torchvision(state, "x")
    assert family == "vgg16"
    kernel = variables["params"]["head"]["fc6"]["kernel"]
    assert kernel.shape == (7, 7, 2, 3)
    assert kernel[4, 5, 1, 2] == weight[2, 49 + 4 * 7 + 5]
    pictures = np.random.default_rng(0).integers(9, size=(7, 7, 2))
    dense = weight @ pictures.transpose(2, 0, 1).ravel()
    np.testing.assert_array_equal(np.einsum("yxc,yxcf->f", pictures, kernel), dense)


def test_layout_of_a_transposed_convolution(monkeypatch):
    """torch.nn.ConvTranspose2d(2, 1, 2, stride=2) of one pixel (1, 10)."""
    table = (Rule("up", "up", TRANSPOSED),)
    monkeypatch.setitem(convert.FAMILIES, "up", table)
    weight = np.float32([[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]])  # [C F kh kw]
    state = {"up.weight": weight, "up.bias": np.zeros(1, np.float32)}
    variables, _, _ = from_torchvision(state, "x")
    kernel = variables["params"]["up"]["kernel"]
    assert kernel.shape == (2, 2, 2, 1)
    y = conv_transpose2d(jnp.array([1.0, 10.0]).reshape(1, 1, 1, 2), jnp.asarray(kernel), stride=2)
    assert y[0, :, :, 0].tolist() == [[51, 62], [73, 84]]
    np.testing.assert_array_equal(to_torchvision(variables, "up")["up.weight"], weight)


def test_layout_of_a_norm():
    names = ("weight", "bias", "running_mean", "running_var")
    state = {f"bn1.{name}": np.full(4, i) for i, name in enumerate(names)}
    state["bn1.num_batches_tracked"] = np.array(77)
    variables, left_over, _ = from_torchvision(state, "x")
    assert left_over == []
    stem = {path: array.tolist() for path, array in flatten(variables).items()}
    assert stem == {
        "params/backbone/stem/norm/scale": [0] * 4,
        "params/backbone/stem/norm/bias": [1] * 4,
        "batch_stats/backbone/stem/norm/mean": [2] * 4,
        "batch_stats/backbone/stem/norm/var": [3] * 4,
    }
    back = to_torchvision(variables, "resnet")
    assert back["bn1.num_batches_tracked"].dtype == np.int64
    assert back["bn1.num_batches_tracked"] == 0


def test_transposed_convolution_beside_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight = rng.random((1, 3, 5, 4), np.float32), rng.random((3, 2, 4, 4), np.float32)
    settings = dict(stride=2, padding=1)
    expected = torch.nn.functional.conv_transpose2d(*map(torch.tensor, (x, weight)), **settings)
    kernel = weight.transpose(TRANSPOSED[0].axes)
    y = conv_transpose2d(jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(kernel), **settings)
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), expected.numpy(), rtol=1e-5)


# Odd files.


def test_auxiliary_classifiers_of_googlenet_are_left_over(manifest):
    state = zeros(manifest("googlenet"))
    auxiliary = {
        "aux1.conv.conv.weight": np.zeros((128, 512, 1, 1)),
        "aux1.conv.bn.running_mean": np.zeros(128),
        "aux2.fc1.weight": np.zeros((1024, 2048)),
        "aux2.fc2.bias": np.zeros(1000),
    }
    variables, left_over, family = from_torchvision(state | auxiliary, "googlenet")
    assert (left_over, family) == (list(auxiliary), "googlenet")
    assert set(to_torchvision(variables, family)) == set(state)


def test_a_few_unknown_keys_are_left_over(manifest):
    state = zeros(manifest("resnet18")) | {"extra.weight": np.zeros(3), "scale": np.zeros(3)}
    assert from_torchvision(state, "x")[1:] == (["extra.weight", "scale"], "resnet")


def test_heads_alone_tell_families_apart(manifest):
    for name in ("resnet50", "fcn_resnet50", "deeplabv3_resnet50", "smp_unet_resnet34"):
        backbone = ("layer", "backbone.layer", "encoder.layer")
        state = {k: v for k, v in zeros(manifest(name)).items() if not k.startswith(backbone)}
        assert from_torchvision(state, name)[2] == MANIFESTS[name]


def test_files_of_other_networks():
    transformer = ("class_token", "conv_proj.weight", "encoder.pos_embedding")
    with pytest.raises(WeightsError, match=r"x\.pth: 3 of 3 keys, such as class_token"):
        from_torchvision(dict.fromkeys(transformer, np.zeros(3)), "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth: 0 of 0 keys"):
        from_torchvision({}, "x.pth")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("conv1.weight", (64, 147), r"conv1\.weight is \(64, 147\), expected 4 axes"),
        ("bn1.weight", (1, 64), r"bn1\.weight is \(1, 64\), expected 1 axes"),
        ("bn1.running_var", (), "expected 1 axes"),
        ("fc.weight", (1000, 512, 1, 1), r"expected \[F C·1\]"),
        ("fc.bias", (1000, 1), "expected 1 axes"),
    ],
)
def test_arrays_with_other_axes(manifest, key, shape, message):
    state = zeros(manifest("resnet18")) | {key: np.zeros(shape)}
    with pytest.raises(WeightsError, match=f"x.pth: .*{message}"):
        from_torchvision(state, "x.pth")


def test_a_window_that_does_not_divide(manifest):
    state = zeros(manifest("alexnet")) | {"classifier.1.weight": np.zeros((4096, 9217))}
    with pytest.raises(WeightsError, match=r"classifier\.1\.weight is .* expected \[F C·36\]"):
        from_torchvision(state, "x")


def test_variables_that_a_family_does_not_know():
    known = {"conv": {"kernel": np.zeros((7, 7, 3, 4))}}
    for stem, path in (
        ({"convolution": known["conv"]}, "params/backbone/stem/convolution/kernel"),
        ({"conv": {"weight": np.zeros(4)}}, "params/backbone/stem/conv/weight"),
        ({"norm": {"group": {"scale": np.zeros(4)}}}, "params/backbone/stem/norm/group/scale"),
    ):
        with pytest.raises(WeightsError, match=f"resnet has no place for {path}"):
            to_torchvision({"params": {"backbone": {"stem": known | stem}}}, "resnet")
    with pytest.raises(WeightsError, match="no place for cache/backbone/stem/conv/kernel"):
        to_torchvision({"cache": {"backbone": {"stem": known}}}, "resnet")
    with pytest.raises(WeightsError, match="family is 'resnet50', expected one of alexnet, "):
        to_torchvision({}, "resnet50")
    flat = {"params": {"backbone": {"stem": {"conv": {"kernel": np.zeros((3, 4))}}}}}
    with pytest.raises(WeightsError, match=r"stem/conv/kernel is \(3, 4\), expected 4 axes"):
        to_torchvision(flat, "resnet")
    wide = {"params": {"head": {"fc6": {"kernel": np.zeros((7, 7, 3, 4))}}}}
    with pytest.raises(WeightsError, match="head/fc6/kernel has not a window of 6×6"):
        to_torchvision(wide, "alexnet")


def test_biases_that_torch_has_before_a_norm_are_written_as_zeros():
    kernel = np.ones((3, 3, 3, 64), np.float32)
    variables = {"params": {"backbone": {"stage1_conv1": {"conv": {"kernel": kernel}}}}}
    bias = to_torchvision(variables, "vgg16_bn")["features.0.bias"]
    assert (bias.dtype, bias.tolist()) == (np.float32, [0] * 64)


def test_tables_name_everything_once():
    for family, table in FAMILIES.items():
        ours = [rule.ours for rule in table if rule.ours and not rule.old]
        for side in ([rule.torch for rule in table], ours):
            assert len(side) == len(set(side)), family


def test_what_a_state_dict_lacks(monkeypatch):
    table = (
        *(Rule("a{i}", "a{i}"), Rule("b", "b", needed=False), Rule("c", None)),
        *(
            Rule("d", "d", needed="d or e"),
            Rule("e", "e", needed="d or e"),
            Rule("a", "f", old=True),
        ),
    )
    monkeypatch.setitem(convert.FAMILIES, "x", table)
    for layers, missing in (
        ("a3 d", []),
        ("a0 a1 b e", []),
        ("d e", ["a{i}"]),
        ("a1 c", ["d", "e"]),
        ("b", ["a{i}", "d", "e"]),
    ):
        state = {f"{layer}.weight": np.zeros((1, 1, 1, 1)) for layer in layers.split()}
        assert lacking(state, "x") == missing


def test_twins_are_families():
    assert {family for families in TWINS.values() for family in families} < FAMILIES.keys()
