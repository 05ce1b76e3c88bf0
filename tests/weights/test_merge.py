"""What comes into a network, what stays out, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.weights.convert import flatten
from jaxseg.weights.files import WeightsError
from jaxseg.weights.merge import Report, adapt_channels, describe, merge


def network(value=0.0, *, channels=3, classes=5, blocks=("block1",), norm=True, dtype=np.float32):
    """Variables of a tiny network with a stem, blocks and a classifier."""

    def full(*shape):
        return np.full(shape, value, dtype)

    def conv(inputs):
        return {"conv": {"kernel": full(3, 3, inputs, 4)}} | (
            {"norm": {"scale": full(4), "bias": full(4)}} if norm else {}
        )

    names = ("stem", *blocks)
    classifier = {"kernel": full(1, 1, 4, classes), "bias": full(classes)}
    params = {name: conv(channels if name == "stem" else 4) for name in names}
    stats = {name: {"norm": {"mean": full(4), "var": full(4)}} for name in names}
    variables = {"params": {"backbone": params, "head": {"classifier": classifier}}}
    return variables | ({"batch_stats": {"backbone": stats}} if norm else {})


CLASSIFIER = ["params/head/classifier/bias", "params/head/classifier/kernel"]


def values(variables):
    return {path: np.unique(array).tolist() for path, array in flatten(variables).items()}


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_everything_fits(convert):
    fresh, loaded = jax.tree.map(convert, network(0.0)), network(1.0)
    merged, report = merge(fresh, loaded, num_classes=5)
    assert jax.tree.structure(merged) == jax.tree.structure(fresh)
    assert set(map(tuple, values(merged).values())) == {(1.0,)}
    assert sorted(report.taken) == sorted(flatten(fresh))
    assert report[1:] == ([], [], [])
    merged["params"]["backbone"]["stem"]["norm"]["bias"][:] = 7  # it is a copy
    assert (loaded["params"]["backbone"]["stem"]["norm"]["bias"] == 1).all()
    assert set(map(tuple, values(fresh).values())) == {(0.0,)}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes_are_those_of_the_network(dtype):
    merged, _ = merge(network(dtype=dtype), network(1.0, dtype=np.float64), num_classes=5)
    assert {array.dtype for array in jax.tree.leaves(merged)} == {jnp.dtype(dtype)}


def test_empty_collections_stay():
    merged, _ = merge(network() | {"cache": {}}, network(1.0), num_classes=5)
    assert merged["cache"] == {}


def test_another_number_of_classes():
    merged, report = merge(network(classes=7), network(1.0, classes=5), num_classes=7)
    assert sorted(report.dropped) == CLASSIFIER
    assert report.fresh == report.left_over == []
    assert {path for path, value in values(merged).items() if value == [0]} == set(CLASSIFIER)
    with pytest.raises(WeightsError, match=r"head/classifier/kernel is \(1, 1, 4, 5\), the netw"):
        merge(network(classes=7), network(1.0, classes=5), num_classes=8)


def test_boxes_of_another_number_of_classes():
    """A detector's last layer has four numbers a class."""
    _, report = merge(network(classes=8), network(1.0, classes=20), num_classes=2)
    assert sorted(report.dropped) == CLASSIFIER
    with pytest.raises(WeightsError, match="classifier"):
        merge(network(classes=9), network(1.0, classes=20), num_classes=2)


def test_anchors_of_another_number_of_classes():
    """Nine at a place, each with a number for every class."""
    _, report = merge(network(classes=9 * 4), network(1.0, classes=9 * 91), num_classes=4)
    assert sorted(report.dropped) == CLASSIFIER
    with pytest.raises(WeightsError, match="classifier"):  # not with six anchors, nor with 9 boxes
        merge(network(classes=9 * 4), network(1.0, classes=6 * 91), num_classes=4)


def test_yolov3_of_another_number_of_classes():
    """Three anchors at a place, each with five numbers and the classes without the background."""
    _, report = merge(network(classes=3 * (5 + 3)), network(1.0, classes=255), num_classes=4)
    assert sorted(report.dropped) == CLASSIFIER


def test_classes_are_no_excuse_in_the_backbone():
    fresh = network()
    fresh["params"]["backbone"]["stem"]["conv"]["kernel"] = np.zeros((3, 3, 3, 7), np.float32)
    with pytest.raises(WeightsError, match=r"stem/conv/kernel is \(3, 3, 3, 4\), the network's is"):
        merge(fresh, network(1.0), num_classes=7)


def test_backbone_alone_and_head_alone():
    backbone = network(1.0)
    classifier = backbone["params"].pop("head")
    _, report = merge(network(), backbone, num_classes=5)
    assert sorted(report.fresh) == CLASSIFIER
    assert len(report.taken) == 10
    merged, report = merge(network(), {"params": {"head": classifier}}, num_classes=5)
    assert sorted(report.taken) == CLASSIFIER
    assert len(report.fresh) == 10
    assert values(merged)["batch_stats/backbone/stem/norm/var"] == [0]


def test_left_over():
    loaded = network(1.0)
    loaded["params"]["aux_head"] = {"conv": {"kernel": np.ones((1, 1, 4, 5))}}
    merged, report = merge(network(), loaded, num_classes=5)
    assert report.left_over == ["params/aux_head/conv/kernel"]
    assert "aux_head" not in merged["params"]


@pytest.mark.parametrize(
    ("fresh", "loaded", "message"),
    [
        (
            {"blocks": ("block1", "block2")},
            {},
            "x.pth has another backbone: it lacks batch_stats/backbone/block2/norm/mean, "
            "batch_stats/backbone/block2/norm/var, params/backbone/block2/conv/kernel and 2 more, "
            "the network lacks nothing",
        ),
        ({}, {"blocks": ("block1", "block2")}, "it lacks nothing, the network lacks batch_stats/"),
        ({"norm": False}, {}, "the network lacks batch_stats/backbone/block1/norm/mean"),
        ({}, {"norm": False}, "it lacks batch_stats/backbone/block1/norm/mean"),
    ],
)
def test_another_backbone(fresh, loaded, message):
    with pytest.raises(WeightsError, match=message):
        merge(network(**fresh), network(1.0, **loaded), num_classes=5, name_of_file="x.pth")


def test_batch_norms_do_not_become_group_norms():
    """Even where all parameters have the same names."""
    fresh = network()
    del fresh["batch_stats"]
    with pytest.raises(WeightsError, match="the network lacks batch_stats/backbone"):
        merge(fresh, network(1.0), num_classes=5)


def test_other_channels():
    kernel = np.random.default_rng(0).random((3, 3, 3, 4), np.float32)
    loaded = network(1.0)
    loaded["params"]["backbone"]["stem"]["conv"]["kernel"] = kernel
    with pytest.raises(WeightsError, match="reads 3 channels, the network 1: adapt_input is off"):
        merge(network(channels=1), loaded, num_classes=5)
    merged, _ = merge(network(channels=1), loaded, num_classes=5, adapt_input=True)
    adapted = merged["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_allclose(adapted, kernel.sum(axis=2, keepdims=True), rtol=1e-6)
    assert adapted.dtype == np.float32


@pytest.mark.parametrize("fresh", [{"channels": 3}, {"channels": 2}])
def test_only_the_kernel_that_reads_the_picture_is_adapted(fresh):
    """A kernel of another number of channels than 3 does not read RGB."""
    with pytest.raises(WeightsError, match=r"stem/conv/kernel is \(3, 3, 1, 4\), the network's is"):
        merge(network(**fresh), network(1.0, channels=1), num_classes=5, adapt_input=True)
    head = network(1.0)
    head["params"]["head"]["classifier"]["kernel"] = np.ones((1, 1, 3, 5))
    with pytest.raises(WeightsError, match=r"classifier/kernel is \(1, 1, 3, 5\)"):
        merge(network(), head, num_classes=5, adapt_input=True)


def test_adapt_channels_by_hand():
    kernel = np.float32([3, 6, 9]).reshape(1, 1, 3, 1)
    assert adapt_channels(kernel, 1).ravel().tolist() == [18]
    assert adapt_channels(kernel, 2).ravel().tolist() == [9, 9]
    assert adapt_channels(kernel, 4).ravel().tolist() == [2.25, 4.5, 6.75, 4.5]
    assert adapt_channels(kernel, 6).ravel().tolist() == [1.5, 3, 4.5, 3, 3, 3]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value):
    loaded = network(1.0)
    loaded["batch_stats"]["backbone"]["block1"]["norm"]["var"][2] = value
    with pytest.raises(WeightsError, match="x: batch_stats/backbone/block1/norm/var has values th"):
        merge(network(), loaded, num_classes=5, name_of_file="x")


def test_values_too_large_for_the_network():
    with pytest.raises(WeightsError, match="not finite"):
        merge(network(dtype=np.float16), network(1e6), num_classes=5)


def test_nothing_fits():
    with pytest.raises(WeightsError, match="nothing that fits, such as params/body/kernel"):
        merge(network(), {"params": {"body": {"kernel": np.ones(3)}}}, num_classes=5)
    loaded = {"params": {"head": network(1.0)["params"]["head"]}}
    with pytest.raises(WeightsError, match="nothing that fits"):
        merge(network(classes=7), loaded, num_classes=7)


def test_other_ranks():
    loaded = network(1.0)
    loaded["params"]["head"]["classifier"]["kernel"] = np.ones((4, 5))
    with pytest.raises(
        WeightsError, match=r"classifier/kernel is \(4, 5\), the network's is \(1, "
    ):
        merge(network(), loaded, num_classes=5)


def test_a_bias_before_a_batch_norm_moves_into_its_mean():
    """(x + b − m) / √v = (x − (m − b)) / √v."""
    loaded = network(1.0)
    loaded["params"]["backbone"]["stem"]["conv"]["bias"] = np.float32([1, 2, 3, 4])
    merged, report = merge(network(), loaded, num_classes=5)
    assert merged["batch_stats"]["backbone"]["stem"]["norm"]["mean"].tolist() == [0, -1, -2, -3]
    assert report.left_over == []
    assert "bias" in loaded["params"]["backbone"]["stem"]["conv"]
    fresh = network()
    fresh["params"]["backbone"]["stem"]["conv"]["bias"] = np.zeros(4, np.float32)
    merged, _ = merge(fresh, loaded, num_classes=5)
    assert merged["batch_stats"]["backbone"]["stem"]["norm"]["mean"].tolist() == [1, 1, 1, 1]
    assert merged["params"]["backbone"]["stem"]["conv"]["bias"].tolist() == [1, 2, 3, 4]
    loaded["params"]["backbone"]["stem"]["conv"]["bias"] = np.ones(3)
    with pytest.raises(WeightsError, match="the network lacks params/backbone/stem/conv/bias"):
        merge(network(), loaded, num_classes=5)


def test_dense_layers_of_a_classifier_are_those_of_a_head_of_regions():
    """Those that have the same shape."""
    fc6, fc7 = {"kernel": np.ones((7, 7, 4, 6))}, {"kernel": np.ones((1, 1, 6, 6))}
    loaded = {"params": {"head": {"fc6": fc6, "fc7": fc7}}}
    fresh = {"params": {"box_head": {"fc6": {"kernel": np.zeros((7, 7, 4, 6))}}}}
    merged, report = merge(fresh, loaded, num_classes=5)
    assert (merged["params"]["box_head"]["fc6"]["kernel"] == 1).all()
    assert report == (["params/box_head/fc6/kernel"], [], [], ["params/head/fc7/kernel"])
    fresh["params"]["box_head"]["fc6"]["kernel"] = np.zeros((7, 7, 8, 6))
    with pytest.raises(WeightsError, match="nothing that fits"):
        merge(fresh, loaded, num_classes=5)


def test_describe():
    report = Report(
        taken=["params/backbone/stem/conv/kernel", "batch_stats/backbone/stem/norm/mean"],
        dropped=["params/head/classifier/kernel", "params/head/classifier/bias"],
        fresh=[f"params/up{i}/conv/kernel" for i in range(8)],
        left_over=["params/aux_head/conv/conv/kernel"],
    )
    assert describe(report).splitlines() == [
        "taken 2: backbone 2",
        "dropped 2: head/classifier 2",
        "fresh 8: up0 1, up1 1, up2 1, up3 1, up4 1, up5 1, 2 more modules",
        "left over 1: aux_head/conv/conv 1",
    ]
    assert describe(Report(["params/a/kernel"], [], [], [])) == "taken 1: a 1"


@pytest.mark.parametrize("anchors", [1, 3, 9])
def test_heads_of_other_classes_are_dropped_for_any_number_of_anchors(anchors):
    def head(num_classes):
        return {"params": {"logits": {"bias": np.zeros(anchors * num_classes)}, "x": np.ones(2)}}

    _, report = merge(head(3), head(7), num_classes=3)
    assert report.dropped == ["params/logits/bias"]
    assert report.taken == ["params/x"]
