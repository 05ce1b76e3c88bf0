import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from cases import slow_but
from networks import compiled_once, picture, random_variables

from jaxseg.backbones.resnet import ResNet
from jaxseg.models import deeplab
from jaxseg.nn.aspp import ASPP
from jaxseg.nn.norm import make_norm
from jaxseg.ops.conv import resize_bilinear

DRY = dict(dropout=0.0, auxiliary_dropout=0.0)
PUBLISHED = {
    "deeplabv3_resnet50": deeplab.TORCHVISION | DRY | dict(backbone="resnet50"),
    "deeplabv3_resnet101": deeplab.TORCHVISION | DRY | dict(backbone="resnet101"),
    "deeplabv3_mobilenet_v3_large": deeplab.TORCHVISION_MOBILENET | DRY,
    "smp_deeplabv3plus_resnet50": deeplab.SMP | dict(dropout=0.0),
}
NARROW = {
    "v1": dict(width=4, head_width=16),
    "v2": dict(width=4, backbone="resnet18", scales=(1.0, 0.5)),
    "v3": dict(width=4, backbone="resnet18", multi_grid=(1, 2), head_width=8),
    "v3-cascade": dict(width=4, backbone="resnet18", multi_grid=(1, 2)),
    "v3+": dict(width=4, backbone="resnet18", head_width=8, low_level_width=4, fuse=1),
}


def network(version, num_classes=3, **fields):
    kind, defaults, _ = deeplab.VERSIONS[version]
    return kind(num_classes, **(defaults | fields))


def draw(net):
    return random_variables(net, jnp.zeros((1, 33, 33, 3)))


def rows(x):
    """Distance of the first from the last row [B H W C] with anything but 0, both included."""
    (found,) = np.nonzero(np.abs(x).max((0, 2, 3)))
    return found[-1] - found[0] + 1


def load(fixtures, name):
    return published.read(fixtures, f"seg/{name}"), network(num_classes=21, **PUBLISHED[name])


in_the_default_suite = ("deeplabv3_resnet50", "smp_deeplabv3plus_resnet50")
names = [
    pytest.param(name, marks=() if name in in_the_default_suite else pytest.mark.slow)
    for name in PUBLISHED
]


@pytest.mark.parametrize("name", names)
def test_published_logits(fixtures, name):
    published.check_logits(*load(fixtures, name))


@pytest.mark.parametrize("name", slow_but(1, reversed(PUBLISHED)))
def test_published_gradients(fixtures, name):
    # A value that rounding puts on the other side of a bend of the hard swish shows.
    tolerance = 1e-3 if "mobilenet" in name else 1e-4
    reference, net = load(fixtures, name)
    published.check_training(reference, net, batch_statistics=False, tolerance=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_training(fixtures, name):
    published.check_training(*load(fixtures, name), batch_statistics=True)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (network("v1", 21), 20_505_429),  # 20.5M in the paper's table 2
        # what torchvision states beside its weights
        (network(num_classes=21, **PUBLISHED["deeplabv3_resnet50"]), 42_004_074),
        (network(num_classes=21, **PUBLISHED["deeplabv3_resnet101"]), 60_996_202),
        (network(num_classes=21, **PUBLISHED["deeplabv3_mobilenet_v3_large"]), 11_029_328),
    ],
)
def test_parameter_counts(net, count):
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count


def test_atrous_convolution_is_the_strided_network_evaluated_densely():
    image, scores = picture(1, 65, 97, 3), {}
    for stride in (8, 16, 32):
        fields = dict(backbone="resnet18", width=4, rates=(4, 8), scales=(), output_stride=stride)
        net = network("v2", **fields)
        scores[stride] = compiled_once(net.apply)(draw(net), image)[:, ::32, ::32]
    assert np.ptp(scores[32]) > 1e-3
    np.testing.assert_allclose(scores[16], scores[32], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores[8], scores[32], rtol=1e-4, atol=1e-6)


def test_a_cascade_continues_the_strides_or_the_dilations():
    image = picture(1, 65, 129, 3)
    features = {}
    for stride in (8, 64):
        net = ResNet(
            18, width=2, output_stride=stride, cascade=1, norm=make_norm("batch", train=False)
        )
        features[stride] = compiled_once(net.apply)(draw(net), image)[64]
    assert features[64].shape == (1, 2, 3, 16)
    np.testing.assert_allclose(features[8][:, ::8, ::8], features[64], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rate", [1, 3, 6])
def test_a_branch_reaches_over_k_plus_k_minus_1_times_rate_minus_1_positions(rate):
    x = picture(1, 33, 33, 3)
    aspp = ASPP(2, rates=(rate,))
    params = jax.tree.map(jnp.abs, random_variables(aspp, x)["params"])
    params["pooling"] = jax.tree.map(jnp.zeros_like, params["pooling"])  # sees everything
    centre = compiled_once(jax.grad(lambda x: aspp.apply({"params": params}, x)[0, 16, 16].sum()))
    gradient = centre(jnp.abs(x))
    assert rows(gradient) == 3 + (3 - 1) * (rate - 1)


def test_field_of_view_of_version_1():
    """Of one feature after the last pooling by hand: 5 (stage 1) + 2 (pooling) + 8 + 4 + 24 + 8
    + 48 + 16 (stride 8 from here on) + 96 (dilation 2) + 16 = 227. fc6 spans 25 of them, 24·8
    pixels more; in cells of VGG16's stride, as the paper counts, these are 24·8 + 32 = 224."""
    net = network("v1", width=1, head_width=1)
    image = jnp.ones((1, 641, 9, 3))  # the margins must not reach what is looked at
    # Kernels are means, so that all that a feature sees has its part in it.
    means = jax.tree.map(lambda x: jnp.full(x.shape, x.shape[-1] / x.size), draw(net))
    gradient = compiled_once(jax.grad(lambda image: net.apply(means, image)[0, 320, 0, 0]))(image)
    assert rows(gradient) == 227 + 24 * 8


def test_scales_are_fused_by_their_maximum():
    fields = dict(backbone="resnet18", width=4)
    image = picture(1, 41, 57, 3)
    variables = draw(network("v2", scales=(), **fields))
    single = compiled_once(network("v2", scales=(), **fields).apply)
    outputs = compiled_once(network("v2", scales=(1.0, 0.5), **fields).apply)(variables, image)
    half = resize_bilinear(image, (21, 29), align_corners=True)
    expected = resize_bilinear(single(variables, half), (41, 57), align_corners=True)
    np.testing.assert_allclose(outputs["scale1.0"], single(variables, image), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["scale0.5"], expected, rtol=1e-5, atol=1e-5)
    assert (np.asarray(outputs["scale1.0"]) > outputs["scale0.5"]).any()
    assert (np.asarray(outputs["scale1.0"]) < outputs["scale0.5"]).any()
    maximum = np.maximum(outputs["scale1.0"], outputs["scale0.5"])
    np.testing.assert_array_equal(outputs["out"], maximum)


@pytest.mark.parametrize("version", ["v1", "v3+"])
def test_maps_are_aligned(version):
    """With kernels that are the same upside down, a picture upside down must give the same result
    upside down."""
    net = network(version, **NARROW[version])
    variables = jax.tree.map(lambda x: (x + x[::-1, ::-1]) / 2 if x.ndim == 4 else x, draw(net))
    image = picture(1, 65, 49, 3)
    apply = compiled_once(net.apply)
    scores, mirrored = apply(variables, image), apply(variables, image[:, ::-1, ::-1])
    assert np.ptp(scores) > 1e-3
    np.testing.assert_allclose(mirrored[:, ::-1, ::-1], scores, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("version", deeplab.VERSIONS)
def test_narrow_variants_learn_from_pictures_of_any_size(version):
    model = deeplab.build(3, version=version, **NARROW[version])
    labels = jnp.arange(47).reshape(1, 1, 47) // 16 * jnp.ones((2, 33, 1), int)
    image = picture(2, 33, 47, 3) + labels[..., None]
    batch = {"image": image, "segmentation": labels, "valid": jnp.ones(2, bool)}
    variables = model.init(jax.random.key(0), batch)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    @compiled_once
    @jax.value_and_grad
    def total(params):
        losses, _ = model.loss({"params": params, **rest}, batch, jax.random.key(1))
        return sum(mean.value() for mean in losses.values())

    first, grads = total(params)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))
    for _ in range(5):
        rate = 0.1 / jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, grads)
        last, grads = total(params)
    assert last < 0.98 * first
    found = jax.eval_shape(model.predict, variables, image)
    assert found["probabilities"].shape == (2, 33, 47, 3)


def test_version_1_learns_from_every_8th_pixel():
    model = deeplab.build(3, version="v1", width=1, head_width=1)
    image = picture(1, 17, 25, 3)
    labels = jnp.zeros((1, 17, 25), int).at[:, ::8, ::8].set(1)
    batch = {"image": image, "segmentation": labels}
    variables = draw(network("v1", width=1, head_width=1))
    loss = compiled_once(lambda batch: model.loss(variables, batch, jax.random.key(1))[0])
    found = loss(batch)["cross_entropy"]
    assert found.weight == 3 * 4
    other = batch | {"segmentation": jnp.ones((1, 17, 25), int)}
    assert loss(other)["cross_entropy"].total == found.total


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"version is 'v4', expected one of v1, v2, v3"):
        deeplab.build(2, version="v4")
    image = jnp.zeros((1, 32, 32, 3))
    for fields, message in [
        (dict(backbone="vgg19"), "backbone is 'vgg19', expected one of vgg16"),
        (dict(backbone="vgg16"), "multi_grid: of a ResNet, not of vgg16"),
        (dict(multi_grid=(1, 2)), r"multi_grid is \(1, 2\), expected 3 dilations"),
        (dict(output_stride=4), "output stride 4: expected one of"),
        (dict(auxiliary=1), r"auxiliary is 1, expected one of \[2, 4, 8, 16, 32\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(network("v3", **fields).init, jax.random.key(0), image)
