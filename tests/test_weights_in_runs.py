"""Weights from outside into a run, and out again: `init_from`, `export --format=torchvision`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables
from runs import get_config

from jaxseg import export, run
from jaxseg.models import unet
from jaxseg.models.faster_rcnn import V2
from jaxseg.weights.convert import from_torchvision
from jaxseg.weights.files import read_state_dict, write_state_dict


def fresh(num_classes, channels=3, backbone="resnet18", seed=1):
    network = unet.EncoderUNet(num_classes, backbone, 4, (8, 4, 4, 4, 4))
    return random_variables(network, jnp.zeros((1, 32, 32, channels)), seed)


@pytest.fixture(scope="module")
def variables():
    return fresh(3, seed=0)


@pytest.fixture(params=[".pth", ".safetensors"])
def file(request, variables, tmp_path):
    family, state = export.torchvision_twin("unet", variables)
    assert family == "smp_unet_resnet"
    path = tmp_path / f"unet{request.param}"
    write_state_dict(path, state)
    return path


def test_there_and_back(file, variables):
    config = get_config()
    config.init_from = str(file)
    taken, told = run.take_weights(fresh(3), config, 3)
    jax.tree.map(np.testing.assert_array_equal, taken, variables)
    assert "a smp_unet_resnet" in told


def test_a_head_of_other_classes_is_dropped_and_named(file, variables):
    config = get_config()
    config.init_from = str(file)
    taken, told = run.take_weights(fresh(5), config, 5)
    assert "dropped 2: classifier 2" in told
    assert taken["params"]["classifier"]["kernel"].shape == (3, 3, 4, 5)
    for part in ("params", "batch_stats"):
        ours, theirs = taken[part]["backbone"], variables[part]["backbone"]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_backbone_alone(file, variables):
    config = get_config()
    config.init_from, config.init_part = str(file), "/backbone/"
    start = fresh(3)
    taken, _ = run.take_weights(start, config, 3)
    ours = taken["params"]
    jax.tree.map(np.testing.assert_array_equal, ours["backbone"], variables["params"]["backbone"])
    jax.tree.map(np.testing.assert_array_equal, ours["up1"], start["params"]["up1"])
    config.init_part = "/spine/"
    with pytest.raises(ValueError, match=r"init_part: '/spine/' is found in no path"):
        run.take_weights(start, config, 3)


def test_other_channels_are_taken_when_asked(file, variables):
    config = get_config()
    config.init_from = str(file)
    with pytest.raises(ValueError, match="reads 3 channels, the network 1: adapt_input is off"):
        run.take_weights(fresh(3, channels=1), config, 3)
    config.init_adapt_input = True
    taken, _ = run.take_weights(fresh(3, channels=1), config, 3)
    kernel = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
    summed = taken["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_allclose(summed, kernel.sum(2, keepdims=True), rtol=1e-5)


def test_another_network_and_a_broken_file_are_refused(file, tmp_path):
    config = get_config()
    config.init_from = str(file)
    with pytest.raises(ValueError, match=r"another backbone: it lacks .*stage1_block3"):
        run.take_weights(fresh(3, backbone="resnet34"), config, 3)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=file.name):
        run.take_weights(fresh(3), config, 3)


def test_torch_reads_what_is_exported(variables, tmp_path):
    torch = pytest.importorskip("torch")
    _, state = export.torchvision_twin("unet", variables)
    write_state_dict(tmp_path / "unet.pth", state)
    loaded = torch.load(tmp_path / "unet.pth", weights_only=True)
    assert list(loaded) == list(read_state_dict(tmp_path / "unet.pth"))
    kernel = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        loaded["encoder.conv1.weight"].numpy(), kernel.transpose(3, 2, 0, 1)
    )


# ---- twins

NARROW = dict(backbone="resnet18", width=4)
PYRAMID = NARROW | dict(features=8, box_dense=(8, 8))
ONE_MAP = dict(pyramid=False, settings=dict(anchor_sizes=((32, 64),)))


def empty(model, **options):
    """Variables without memory."""
    model = run.find_module("model", model).build(3, **options)
    batch = {"image": np.zeros((1, 64, 64, 3), np.float32)}
    shapes = jax.eval_shape(lambda key: dict(model.init(key, batch)), jax.random.key(0))
    return jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), shapes)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("unet", dict(width=4, depth=2), "smp_unet_resnet has no place for params/bottom"),
        ("unet", NARROW | dict(norm="none"), "smp_unet_resnet has encoder.bn1, encoder.layer"),
        # The arrays of a classifier, and of none of torchvision's networks that segment.
        ("fcn", dict(stride=32, width=4, head_width=8), "fcn_resnet has no place for params/backb"),
        (
            "deeplab",
            dict(version="v3", backbone="resnet50", width=4),
            r"deeplabv3_resnet has classifier\.1, classifier\.2 besides \(2 such\)",
        ),
        ("deeplab", dict(version="v3-cascade", backbone="resnet50", width=4), "classifier.0.convs"),
        ("faster_rcnn", PYRAMID | ONE_MAP, r"rcnn_resnet_fpn has backbone\.fpn\.inner_blocks"),
        ("faster_rcnn", PYRAMID | dict(box_dense=(8,)), r"rcnn_resnet_fpn has .*box_head\.fc7"),
        ("retinanet", NARROW | dict(features=8, convolutions=3), r"has .*conv\.3\.0, head\.regr"),
        (
            "fcos",
            NARROW | dict(features=32, head_norm="none"),
            r"has .*classification_head\.conv\.1",
        ),
        ("yolov3", dict(tiny=True, width=2), "yolov3 is none of fcn, deeplab, lraspp"),
    ],
)
def test_networks_without_a_twin_are_refused(model, options, message):
    with pytest.raises(ValueError, match=f"has no twin in torchvision: .*{message}"):
        export.torchvision_twin(model, empty(model, **options))


@pytest.mark.parametrize(
    ("model", "options", "family"),
    [
        ("fcn", dict(backbone="resnet50", width=4, auxiliary=False), "fcn_resnet"),
        ("faster_rcnn", PYRAMID, "rcnn_resnet_fpn"),
        ("faster_rcnn", PYRAMID | V2, "rcnn_resnet_fpn"),
        ("retinanet", NARROW | dict(features=8), "retinanet_resnet_fpn"),
        ("retinanet", NARROW | dict(features=32, head_norm="group"), "retinanet_resnet_fpn"),
        ("fcos", NARROW | dict(features=32), "fcos_resnet_fpn"),
    ],
)
def test_twins(model, options, family):
    variables = empty(model, **options)
    found, state = export.torchvision_twin(model, variables)
    assert found == family
    back, left_over, _ = from_torchvision(state, "x")
    assert left_over == []
    shapes = jax.tree.map(np.shape, variables, is_leaf=lambda x: isinstance(x, np.ndarray))
    assert jax.tree.map(np.shape, back) == shapes


def test_biases_that_our_fcos_may_lack_are_zeros():
    options = NARROW | dict(features=32, head_norm_and_bias=False)
    _, state = export.torchvision_twin("fcos", empty("fcos", **options))
    assert state["head.regression_head.conv.9.bias"].tolist() == [0] * 32


def test_export_names_the_model_of_a_run(variables, tmp_path):
    config = get_config()
    config.model.update(name="jaxseg.models.unet", backbone="resnet18")
    info = run.Info("x", ("a", "b", "c"), np.zeros((3, 3), np.uint8), ())
    opened = run.Run(config, info, run.build_model(get_config(), info), variables, 5)
    told = export.export_torchvision(opened, tmp_path / "x.pth")
    assert told == {"family": "smp_unet_resnet", "arrays": 182, "step": 5}
    config.model.aligned = True
    with pytest.raises(ValueError, match=r"aligned is True, expected False"):
        export.export_torchvision(opened, tmp_path / "x.pth")
    config.model.update(name="fakes.detector", aligned=False)
    with pytest.raises(ValueError, match=r"fakes\.detector is none of fcn, deeplab"):
        export.export_torchvision(opened, tmp_path / "x.pth")
