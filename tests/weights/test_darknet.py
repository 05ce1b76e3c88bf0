"""Darknet's files: what is written is read, and computes what the `.cfg` says layer by layer."""

import json
import struct

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from networks import compiled_once, picture, random_variables

from jaxseg import export, run
from jaxseg.config import default
from jaxseg.models import yolov3
from jaxseg.models.yolov3 import ANCHORS, TINY_ANCHORS, YOLOv3
from jaxseg.types import MEAN, STD
from jaxseg.weights.convert import flatten, from_torchvision, to_torchvision
from jaxseg.weights.darknet import (
    Weights,
    convolutions,
    read_cfg,
    read_darknet,
    read_weights,
    write_cfg,
    write_weights,
    yolov3_cfg,
    yolov3_options,
)
from jaxseg.weights.files import WeightsError

MASKS = ((6, 7, 8), (3, 4, 5), (0, 1, 2))


def sections_of(tiny, num_classes=81, **options):
    anchors, masks = (TINY_ANCHORS, MASKS[1:]) if tiny else (ANCHORS, MASKS)
    return yolov3_cfg(num_classes, tiny=tiny, **{"anchors": anchors, "masks": masks} | options)


# ---- YOLOv3


def interpret(sections, arrays, x):
    """What each [yolo] is given for a picture [H W C]: the network as its `.cfg` says."""
    outputs, found = [], []
    for layer, (kind, options) in enumerate(sections[1:]):
        step = int(options.get("stride", 1))
        match kind:
            case "convolutional":
                weight = arrays[f"{layer}.conv.weight"]
                size, margin = int(options["size"]), int(options["size"]) // 2
                x = np.pad(x, ((margin, margin), (margin, margin), (0, 0)))
                windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))
                x = np.einsum("hwcij,fcij->hwf", windows[::step, ::step], weight, optimize=True)
                if options.get("batch_normalize") == "1":
                    mean, var, scale, bias = (
                        arrays[f"{layer}.norm.{name}"]
                        for name in ("running_mean", "running_var", "weight", "bias")
                    )
                    x = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
                else:
                    x = x + arrays[f"{layer}.conv.bias"]
                if options["activation"] == "leaky":
                    x = np.where(x > 0, x, 0.1 * x)
            case "maxpool":
                x = np.pad(x, ((0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
                windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (0, 1))
                x = windows[::step, ::step].max((3, 4))
            case "upsample":
                x = x.repeat(2, 0).repeat(2, 1)
            case "shortcut":
                x = x + outputs[layer + int(options["from"])]
            case "route":
                chosen = [int(n) for n in options["layers"].split(",")]
                x = np.concatenate([outputs[n + layer if n < 0 else n] for n in chosen], -1)
            case "yolo":
                found.append(x)
        outputs.append(x)
    return found


@pytest.mark.parametrize("tiny", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_networks_compute_what_their_files_say(tmp_path, tiny):
    network = YOLOv3(5, tiny, width=2)
    image = picture(1, 64, 96, 3)
    variables = random_variables(network, image)
    family = "yolov3_tiny" if tiny else "yolov3"
    sections = sections_of(tiny, 5, width=2)
    write_cfg(tmp_path / "x.cfg", sections)
    arrays = to_torchvision(variables, family)
    write_weights(tmp_path / "x.weights", sections, Weights(arrays, seen=2**40))

    assert read_cfg(tmp_path / "x.cfg") == sections
    weights = read_weights(tmp_path / "x.weights", sections)
    assert (weights.seen, weights.version) == (2**40, (0, 2, 0))
    run = compiled_once(network.apply)
    outputs = run(variables, image)
    colours = np.asarray(image[0]) * STD + MEAN
    expected = interpret(sections, weights.arrays, colours)
    assert len(expected) == len(outputs) == 3 - tiny
    for x, y in zip(outputs, expected, strict=True):
        y = y.reshape(x.shape[1:])
        np.testing.assert_allclose(x[0], y, rtol=0, atol=1e-4 * np.abs(y).max())

    loaded, left_over, known = from_torchvision(read_darknet(tmp_path / "x.weights"), "x")
    assert (left_over, known) == ([], family)
    loaded, variables = flatten(loaded), flatten(variables)
    assert set(loaded) == set(variables)
    for path, array in variables.items():
        np.testing.assert_array_equal(loaded[path], array, err_msg=path)


@pytest.mark.parametrize(("tiny", "size"), [(False, 248_007_048), (True, 35_434_956)])
def test_sizes_of_the_published_files(tiny, size):
    layers = list(convolutions(sections_of(tiny)))
    assert len(layers) == (13 if tiny else 75)
    numbers = sum(np.prod(shape) for layer in layers for shape in layer.arrays().values())
    assert 12 + 8 + 4 * numbers == size


def test_layers_lie_where_published_files_have_them():
    """The numbers that Darknet prints: scales at 82, 94 and 106; 16 and 23 of the tiny network."""
    for tiny, scales, routes in (
        (False, [82, 94, 106], {83: "-4", 86: "-1,61", 95: "-4", 98: "-1,36"}),
        (True, [16, 23], {17: "-4", 20: "-1,8"}),
    ):
        layers = sections_of(tiny)[1:]
        assert [n for n, layer in enumerate(layers) if layer.kind == "yolo"] == scales
        found = {n: x.options["layers"] for n, x in enumerate(layers) if x.kind == "route"}
        assert found == routes
        assert layers[scales[0] - 1].options["filters"] == "255"


@pytest.mark.parametrize("tiny", [False, True])
def test_options_of_a_cfg_build_the_network(tmp_path, tiny):
    sections = sections_of(tiny, 4, width=2, ignore_iou=0.7)
    text = "# a comment\n"
    write_cfg(tmp_path / "x.cfg", sections)
    # As people write them: spaces, comments, and what is for training only.
    text += (tmp_path / "x.cfg").read_text().replace("=", " = ").replace(",", ", ")
    text = text.replace("[yolo]\n", "[yolo]\n; jitter\njitter=.3\nrandom=1\n")
    text = text.replace("channels = 3", "channels=3\nlearning_rate=0.001\nsteps=400000,450000")
    (tmp_path / "x.cfg").write_text(text)
    options = yolov3_options(read_cfg(tmp_path / "x.cfg"))
    assert options == {
        "num_classes": 4,
        "tiny": tiny,
        "width": 2,
        "settings": {
            "anchors": TINY_ANCHORS if tiny else ANCHORS,
            "masks": MASKS[1:] if tiny else MASKS,
            "ignore_iou": 0.7,
        },
    }
    model = yolov3.build(**options)
    batch = {"image": np.zeros((1, 64, 64, 3), np.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    state = to_torchvision(
        jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), dict(variables)),
        "yolov3_tiny" if tiny else "yolov3",
    )
    for layer in convolutions(sections):
        for name, shape in layer.arrays().items():
            assert state[name].shape == shape


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("activation=leaky", "activation=mish", r"layer 0 \[convolutional\] has activation=mish"),
        ("stride=2\n", "stride=1\n", r"layer 1 \[maxpool\] has stride=1, expected 2"),
        ("filters=4\n", "filters=5\n", r"layer 2 \[convolutional\] has filters=5, expected 4"),
        ("channels=3", "channels=1", "has channels=1, expected 3"),
        ("layers=-4", "layers=-3", r"layer 17 \[route\] has layers=-3, expected -4"),
        ("[upsample]", "[maxpool]", r"layer 19 \[maxpool\], expected \[upsample\]"),
        ("mask=3,4,5", "mask=3,4", r"layer 15 \[convolutional\] has filters=24, expected 16"),
        ("mask=3,4,5", "mask=3,4,6", r"\[yolo\] has a mask beyond its 6 anchors"),
        ("mask=3,4,5", "mask=3,4,x", r"\[yolo\] has mask='3,4,x', expected numbers"),
        ("anchors=10,14,", "anchors=11,14,", r"layer 23 \[yolo\] has anchors=10"),
        ("anchors=10,14,", "anchors=", "has a mask beyond its 5 anchors"),
        ("anchors=10,14,", "anchors=nan,14,", "expected numbers of 0 or more"),
        ("anchors=10,14,", "anchors=0,14,", "expected pairs above 0"),
        ("anchors=10,14,", "anchors=10,", "expected pairs above 0"),
        ("\nclasses=3", "\nclasses=3\nscale_x_y=1.2", "has scale_x_y=1.2, expected 1"),
        ("size=3\n", "size=3\nxnor=1\n", "has xnor=1, expected 0"),
        ("classes=3", "classes=0", "has classes=0, expected a whole number above 0"),
        ("classes=3", "classes=" + "9" * 99, "expected a whole number above 0"),
        ("[yolo]\nmask=0,1,2", "[region]\nmask=0,1,2", r"has 1 \[yolo\], expected 3, or 2"),
        (
            "\n[route]\nlayers=-4",
            "\n[dropout]\n\n[route]\nlayers=-4",
            r"\[dropout\], expected \[route\]",
        ),
    ],
)
def test_cfgs_of_other_networks(tmp_path, old, new, message):
    write_cfg(tmp_path / "x.cfg", sections_of(True, 4, width=2))
    text = (tmp_path / "x.cfg").read_text()
    assert old in text
    (tmp_path / "x.cfg").write_text(text.replace(old, new, 1))
    with pytest.raises(WeightsError, match=message) as caught:
        yolov3_options(read_cfg(tmp_path / "x.cfg"), "x.cfg")
    assert str(caught.value).startswith("x.cfg")


def test_a_cfg_cut_off(tmp_path):
    sections = sections_of(True, 4, width=2)
    longer = [*sections, sections[1]]
    for some, message in ((sections[:-3], "has 1"), (longer, r"layer 24 .*expected \[end\]")):
        with pytest.raises(WeightsError, match=message):
            yolov3_options(some)


@pytest.mark.parametrize("tiny", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_init_from(tmp_path, tiny):
    """Into a fresh network; without the .cfg beside it, or for other classes, not."""
    options = dict(tiny=tiny, width=2)
    network = YOLOv3(4, **options)
    image = picture(1, 64, 64, 3)
    saved, fresh = (random_variables(network, image, seed) for seed in (1, 2))
    state = to_torchvision(saved, "yolov3_tiny" if tiny else "yolov3")
    sections = sections_of(tiny, 4, width=2)
    write_weights(tmp_path / "x.weights", sections, Weights(state))
    config = default()
    config.init_from = str(tmp_path / "x.weights")
    with pytest.raises(WeightsError, match=r"x\.cfg: expected a \.cfg of Darknet"):
        run.take_weights(fresh, config, 4)
    write_cfg(tmp_path / "x.cfg", sections)
    taken, told = run.take_weights(fresh, config, 4)
    assert f"x.weights, a {'yolov3_tiny' if tiny else 'yolov3'}\n" in told
    jax.tree.map(np.testing.assert_array_equal, taken, saved)
    # The same arrays would mean other boxes where the config has other anchors.
    config.model = ConfigDict({"name": "yolov3", **options})
    run.take_weights(fresh, config, 4)
    size = 6 if tiny else 9
    thirds = [(8 / 3 + n, 1 / 3) for n in range(size)]
    write_cfg(tmp_path / "x.cfg", sections_of(tiny, 4, width=2, anchors=thirds))
    config.model.settings = {"anchors": thirds}
    run.take_weights(fresh, config, 4)
    config.model.settings = {"anchors": [(8 + n, 8) for n in range(size)]}
    with pytest.raises(ValueError, match=r"has other anchors than .*x\.cfg, expected"):
        run.take_weights(fresh, config, 4)
    config.init_part = "/backbone/"
    other = random_variables(YOLOv3(7, **options), image)
    taken, _ = run.take_weights(other, config, 7)
    jax.tree.map(
        np.testing.assert_array_equal, taken["params"]["backbone"], saved["params"]["backbone"]
    )
    assert taken["params"]["head32"] is not saved["params"]["head32"]


# ---- export

SETTINGS = {  # none of them as published, and of the anchors every digit counts
    "anchors": [[4.1234567, 5], [8, 1 / 3], [13, 21.5], [30.000002, 40], [64, 48]],
    "masks": [[4, 1], [0, 3]],
    "ignore_iou": 0.65,
}


def opened(**options):
    config = default()
    config.task = "detection"
    config.model.update({"name": "yolov3", "tiny": True, "width": 2, **options})
    config.data.image_size = (64, 96)
    config.data.batch_size = 8
    info = run.Info("cells", ("background", "red cell", "größer"), np.zeros((3, 3), np.uint8), ())
    fields = config.model.to_dict()
    del fields["name"]
    network, _ = yolov3.network_of(3, fields.pop("settings", {}), **fields)
    variables = random_variables(network, picture(1, 64, 96, 3))
    for head in (f"head{stride}" for stride in network.strides):  # neither certain nor boundless
        variables["params"][head]["predict"]["kernel"] /= 1 if network.tiny else 10_000
    return run.Run(config, info, run.build_model(config, info), variables, 7)


def as_darknet(sections, arrays, colours):
    """Boxes [N 4] in pixels, and scores [N classes], by what the `.cfg` says: equations of section
    2.1 of the paper."""
    scales = [section.options for section in sections if section.kind == "yolo"]
    size = np.array([int(sections[0].options[side]) for side in ("width", "height")])
    boxes, scores = [], []
    for x, options in zip(interpret(sections, arrays, colours), scales, strict=True):
        mask = [int(n) for n in options["mask"].split(",")]
        anchors = np.float64(options["anchors"].split(",")).reshape(-1, 2)[mask]
        x = x.reshape(*x.shape[:2], len(mask), 5 + int(options["classes"]))
        place = np.indices(x.shape[:2])[::-1].transpose(1, 2, 0)[:, :, None]
        chance = 1 / (1 + np.exp(-x))
        centre = (place + chance[..., :2]) / x.shape[1::-1] * size
        half = anchors * np.exp(x[..., 2:4]) / 2
        corners = np.concatenate([centre - half, centre + half], axis=-1)
        boxes.append(corners.reshape(-1, 4).clip(0, np.tile(size, 2)))
        scores.append((chance[..., 4:5] * chance[..., 5:]).reshape(-1, chance.shape[-1] - 5))
    return np.concatenate(boxes), np.concatenate(scores)


@pytest.mark.parametrize(
    "options",
    [
        {"settings": SETTINGS, "norm": "frozen"},
        pytest.param({"tiny": False}, marks=pytest.mark.slow),
    ],
)
def test_exported_files_find_what_the_run_finds(tmp_path, monkeypatch, capsys, options):
    trained, path = opened(**options), tmp_path / "new" / "cells.weights"
    monkeypatch.setattr(run, "open_run", lambda *_, **__: trained)
    export.main(["--workdir=RUN", "--format=darknet", f"--output={path}"])
    assert json.loads(capsys.readouterr().out) == {
        "family": "yolov3_tiny" if trained.config.model.tiny else "yolov3",
        "files": [str(path.with_suffix(f".{kind}")) for kind in ("weights", "cfg", "names")],
        "size": [64, 96],
        "step": 7,
    }
    assert path.with_suffix(".names").read_text() == "red cell\ngrößer\n"
    sections = read_cfg(path.with_suffix(".cfg"))
    assert sections[0] == ("net", {"width": "96", "height": "64", "channels": "3"})
    assert read_weights(path, sections).seen == 7 * 8
    described = yolov3_options(sections)
    assert described["settings"].keys() == {"anchors", "masks", "ignore_iou"}
    wanted = options.get("settings", dict(anchors=ANCHORS, masks=MASKS, ignore_iou=0.5))
    for name, value in described["settings"].items():
        np.testing.assert_array_equal(np.float32(value), np.float32(wanted[name]))
    assert (described["num_classes"], described["width"]) == (3, 2)

    config, image = default(), picture(1, 64, 96, 3)
    config.init_from = str(path)
    taken, _ = run.take_weights(jax.tree.map(np.zeros_like, trained.variables), config, 3)
    jax.tree.map(np.testing.assert_array_equal, taken, trained.variables)
    predict = compiled_once(trained.model.predict)
    found = jax.device_get(predict(trained.variables, image))
    colours = np.asarray(image[0]) * STD + MEAN
    boxes, scores = as_darknet(sections, read_darknet(path), colours)
    place, label = np.unravel_index(scores.argmax(), scores.shape)
    np.testing.assert_allclose(found["scores"][0, 0], scores.max(), rtol=1e-4)
    assert found["labels"][0, 0] == label + 1
    np.testing.assert_allclose(found["boxes"][0, 0], boxes[place], atol=1e-2)


def test_a_size_for_the_exported_network(tmp_path):
    trained = opened()
    told = export.export_darknet(trained, tmp_path / "x.weights", (416, 608))
    assert told["size"] == [416, 608]
    sections = read_cfg(tmp_path / "x.cfg")
    assert (sections[0].options["height"], sections[0].options["width"]) == ("416", "608")
    trained.config.data.buckets = ((96, 128), (128, 96))
    assert export.export_darknet(trained, tmp_path / "x.weights", None)["size"] == [96, 128]


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"norm": "group"}, None, r"config\.model\.norm is 'group', expected one of batch, frozen"),
        ({"norm": "none"}, None, r"config\.model\.norm is 'none'"),
        ({}, (416, 400), "the size is 416,400, expected multiples of 32"),
    ],
)
def test_what_darknet_has_not_is_not_exported(tmp_path, options, size, message):
    with pytest.raises(ValueError, match=message):
        export.export_darknet(opened(**options), tmp_path / "x.weights", size)
    assert not [*tmp_path.iterdir()]


def test_only_yolov3_is_exported_as_weights(tmp_path, capsys):
    trained = opened()
    with trained.config.unlocked():
        trained.config.model.name = "yolox"
    with pytest.raises(ValueError, match="the run's model is yolox: of all networks, only yolov3"):
        export.export_darknet(trained, tmp_path / "x.weights", None)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(SystemExit):
        export.main(["--workdir=RUN", "--format=darknet", f"--output={tmp_path}/x.cfg"])
    assert "--output is the weights, such as model.weights" in capsys.readouterr().err


# ---- by hand

CFG = """
[net]
channels=2
[convolutional]
batch_normalize=1
filters=3
size=1
[maxpool]
[convolutional]
filters=4
size=3
[route]
layers=-1,0
[upsample]
[convolutional]
filters=3
[shortcut]
from=0
"""
# 3 biases, scales, means, variances, 3·2 kernels; 4 biases, 4·3·9; of 7 channels 3 and 21.
NUMBERS = 12 + 6 + 4 + 108 + 3 + 21


def files(folder, cfg=CFG, numbers=NUMBERS, version=(0, 1, 5), counter="<i", seen=77):
    (folder / "x.cfg").write_text(cfg)
    data = struct.pack("<3i", *version) + struct.pack(counter, seen)
    data += struct.pack(f"<{numbers}f", *range(numbers))
    (folder / "x.weights").write_bytes(data)
    return folder / "x.weights"


@pytest.mark.parametrize(
    ("version", "counter", "seen"),
    [((0, 1, 0), "<i", 77), ((0, 2, 5), "<q", 2**40), ((1, 0, 0), "<q", 2**40)],
)
def test_files_by_hand(tmp_path, version, counter, seen):
    path = files(tmp_path, version=version, counter=counter, seen=seen)
    sections = read_cfg(path.with_suffix(".cfg"))
    arrays, *header = read_weights(path, sections)
    assert header == [seen, version]
    one = lambda *numbers: [float(n) for n in numbers]  # noqa: E731
    assert list(arrays) == [
        *(f"0.norm.{name}" for name in ("bias", "weight", "running_mean", "running_var")),
        *("0.conv.weight", "2.conv.bias", "2.conv.weight", "5.conv.bias", "5.conv.weight"),
    ]
    assert arrays["0.norm.bias"].tolist() == one(0, 1, 2)
    assert arrays["0.norm.weight"].tolist() == one(3, 4, 5)
    assert arrays["0.norm.running_mean"].tolist() == one(6, 7, 8)
    assert arrays["0.norm.running_var"].tolist() == one(9, 10, 11)
    assert arrays["0.conv.weight"][:, :, 0, 0].tolist() == [one(12, 13), one(14, 15), one(16, 17)]
    assert arrays["2.conv.bias"].tolist() == one(18, 19, 20, 21)
    assert arrays["2.conv.weight"].shape == (4, 3, 3, 3)
    # Filter after filter, channel after channel, row by row.
    assert arrays["2.conv.weight"][2, 1].tolist()[1] == one(
        *(22 + 2 * 27 + 9 + 3 + i for i in range(3))
    )
    assert arrays["5.conv.weight"].shape == (3, 7, 1, 1)
    assert arrays["5.conv.weight"][-1, -1].tolist() == [one(NUMBERS - 1)]
    write_weights(tmp_path / "y.weights", sections, Weights(arrays, *header))
    assert (tmp_path / "y.weights").read_bytes() == path.read_bytes()


def test_published_files_repeat_options_of_the_net(tmp_path):
    """yolov3-openimages.cfg does. The first one counts."""
    (tmp_path / "x.cfg").write_text("\ufeff[net]\nbatch=64\nbatch=1\n", "utf-8")
    assert read_cfg(tmp_path / "x.cfg")[0].options == {"batch": "64"}


def test_truncated_and_longer_files(tmp_path):
    path = files(tmp_path)
    data = path.read_bytes()
    for end in [*range(0, len(data), 13), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(WeightsError) as caught:
            read_darknet(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "version" in str(caught.value) if end < 12 else f"{end} bytes" in str(caught.value)
    path.write_bytes(data[: 16 + 4 * 30])
    with pytest.raises(
        WeightsError, match=r"in layer 2 \[convolutional\], of shape \(4, 3, 3, 3\)"
    ):
        read_darknet(path)
    for more in (b"x", bytes(4)):
        path.write_bytes(data + more)
        with pytest.raises(WeightsError, match=f"{len(data + more)} bytes, expected {len(data)}"):
            read_darknet(path)


@pytest.mark.parametrize("version", [(-1, 0, 0), (0, 1001, 0), (0, 2, -5)])
def test_unknown_versions(tmp_path, version):
    with pytest.raises(WeightsError, match=r"begins with .*expected a version below 1000"):
        read_darknet(files(tmp_path, version=version))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("filters=4", "filters=1000000000", "they end in layer 2"),
        ("filters=4", "filters=2147483648", "expected a whole number above 0"),
        ("filters=4", "filters=-4", "layer 2 .* has filters=-4, expected a whole number above 0"),
        ("filters=4", "filters=4.0", "expected a whole number above 0"),
        ("filters=4", "filters=٤", "expected a whole number above 0"),
        ("filters=4", "filters=4\nfilters=4", "line 11: filters is given twice"),
        ("filters=4", "filters", "line 10: 'filters', expected"),
        ("filters=4", "groups=2", "has groups, expected 1"),
        ("size=3", "size=2147483647", r"they end in layer 2"),
        ("channels=2", "channels=0", r"\[net\] has channels=0"),
        ("[net]", "[input]", r"expected \[net\] as its first section"),
        ("[net]", "", "line 3: 'channels=2', expected"),
        ("[maxpool]", "[lstm]", r"layer 1 \[lstm\]: expected convolutional, maxpool"),
        ("layers=-1,0", "layers=-1,3", "layers=3, expected the number of a layer before"),
        ("layers=-1,0", "layers=-4", "layers=-4, expected the number of a layer before"),
        ("layers=-1,0", "layers=__import__('os')", "expected the number of a layer before"),
        ("layers=-1,0", "layers=" + "-1," * 10**5 + "0", "they end in layer 5"),
        ("layers=-1,0\n", "", "layers=, expected the number of a layer before"),
        ("from=0", "from=2", r"layer 6 \[shortcut\] adds \[4\] channels to 3"),
    ],
)
def test_hostile_cfgs(tmp_path, old, new, message):
    assert old in CFG
    path = files(tmp_path, CFG.replace(old, new))
    with pytest.raises(WeightsError, match=message) as caught:
        read_darknet(path)
    assert str(caught.value).startswith((f"{path}: ", f"{path.with_suffix('.cfg')}"))


def test_routes_that_double_again_and_again(tmp_path):
    path = files(tmp_path, "[net]\nchannels=3\n" + "[maxpool]\n" + "[route]\nlayers=-1,-1\n" * 64)
    with pytest.raises(WeightsError, match="channels, expected 2147483647 at most"):
        read_darknet(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(WeightsError, match=r"expected a file NAME\.weights"):
        read_darknet(tmp_path / "x.weights")
    path = files(tmp_path)
    path.with_suffix(".cfg").write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsError, match=r"x\.cfg: expected a \.cfg of Darknet"):
        read_darknet(path)
    path.with_suffix(".cfg").write_text("")
    with pytest.raises(WeightsError, match=r"expected \[net\]"):
        read_darknet(path)


def test_writing_is_whole_or_nothing(tmp_path):
    path = files(tmp_path)
    sections, before = read_cfg(path.with_suffix(".cfg")), path.read_bytes()
    arrays = read_darknet(path)
    for changed, message in (
        ({"2.conv.bias": np.zeros(5, np.float32)}, r"2\.conv\.bias is \(5,\), expected \(4,\)"),
        ({"5.conv.bias": None}, r"5\.conv\.bias is missing, expected \(3,\)"),
    ):
        some = {name: array for name, array in (arrays | changed).items() if array is not None}
        with pytest.raises(WeightsError, match=message):
            write_weights(path, sections, Weights(some))
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"x.cfg", "x.weights"}
