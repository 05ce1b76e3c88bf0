"""Detectors beside torchvision's, in one run: Faster R-CNN, Mask R-CNN and RetinaNet on a ResNet-50
with a pyramid, SSD300 on VGG16, SSDLite320 on MobileNetV3.

    python benchmarks/detection.py [--models=faster,mask,retinanet,ssd300,ssdlite --size=512,640
                                    --rounds=5 --threads=2]

Detection at batch 1 and 2, of those with one stage at 1 and 8, and a training step (plain SGD,
every convolution learns) on two images, eight for SSD, with eight objects each; float32, both on
the same device. Images are normalised and sized before, and masks stay in their boxes: what is
timed begins at the backbone and ends at scores, boxes and masks of 28×28. torchvision, eager, has
the memory format, of two, that it is faster with. Its networks take our random variables through
`jaxseg.weights`, and must give the same detections, and the same losses where both sample regions
in order, before anything is timed. The two take turns, round by round; medians and the median of
the ratios (ours over theirs) are printed.

torchvision's mask head works on the objects, or the positive regions, that there are; ours on as
many as there can be. So both counts are printed, and ours is timed again with one object in each
image and with a hundred, and with no detections and all of them. Memory is what the compiler plans.
Lastly, what it takes to compile a step in a new process, and in another one that finds the first
one's cache. Without torchvision this is said, and we run alone. Needs the extra `torch`, and
torchvision of the same release.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--models", default="faster,mask,retinanet,ssd300,ssdlite")
parser.add_argument("--size", default="512,640", help="height,width, multiples of 32; not SSD's")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, help="on CPU; all cores if not given")
parser.add_argument("--parts", default="detect,step,objects,compile")
parser.add_argument("--compile-only", action="store_true", help="a step, and print the seconds")
options = parser.parse_args()
if options.threads and hasattr(os, "sched_setaffinity"):  # before anyone counts the cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from skimage.data import astronaut  # noqa: E402
from skimage.transform import resize  # noqa: E402

from jaxseg.models import faster_rcnn, mask_rcnn, retinanet, ssd  # noqa: E402
from jaxseg.train.step import init_state, make_step  # noqa: E402
from jaxseg.types import MEAN, STD, Batch, Model, Variables  # noqa: E402
from jaxseg.weights.convert import to_torchvision  # noqa: E402

try:
    import torch
    from torchvision.models import detection as torchvision
    from torchvision.models.detection._utils import overwrite_eps
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
except ImportError as error:
    torch, missing = None, error

CLASSES = 91
SIZE = tuple(map(int, options.size.split(",")))
LEARNING_RATE = 1e-6  # so that a hundred steps leave the network as it is


# ---- what is compared


class Pair(NamedTuple):
    """A system as both have it."""

    ours: Callable[..., Model]  # with torchvision's options
    theirs: Callable[[], Any]
    family: str  # of the weights
    losses: dict[str, str]  # {our name: theirs}
    detect: tuple[int, ...]  # numbers of pictures
    in_order: dict[str, str]  # our settings with which samples are the first ones
    step: int = 2  # pictures
    size: tuple[int, int] = SIZE


def resnet_fpn(**options: Any) -> Any:
    return resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, trainable_layers=5, **options
    )


def their_retinanet() -> Any:
    trunk = resnet_fpn(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    return torchvision.RetinaNet(trunk, CLASSES)


V1 = dict(norm="frozen", norm_epsilon=0.0)
NO_WEIGHTS = dict(weights=None, weights_backbone=None, num_classes=CLASSES)
TWO_STAGES = dict(
    family="rcnn_resnet_fpn",
    losses={
        "objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "class": "loss_classifier",
        "box": "loss_box_reg",
        "mask": "loss_mask",
    },
    detect=(1, 2),
    in_order={"sampling": "first"},
)
ONE_STAGE = dict(
    losses={"class": "classification", "box": "bbox_regression"}, detect=(1, 8), in_order={}
)
PAIRS = {
    "faster": Pair(
        partial(faster_rcnn.build, CLASSES, **V1),
        lambda: torchvision.FasterRCNN(resnet_fpn(), CLASSES),
        **TWO_STAGES,
    ),
    "mask": Pair(
        partial(mask_rcnn.build, CLASSES, **V1),
        lambda: torchvision.MaskRCNN(resnet_fpn(), CLASSES),
        **TWO_STAGES,
    ),
    "retinanet": Pair(
        partial(retinanet.build, CLASSES, **V1),
        their_retinanet,
        "retinanet_resnet_fpn",
        **ONE_STAGE,
    ),
    "ssd300": Pair(
        partial(ssd.build, CLASSES, variant="ssd300"),
        lambda: torchvision.ssd300_vgg16(**NO_WEIGHTS),
        "ssd_vgg16",
        step=8,
        size=(300, 300),
        **ONE_STAGE,
    ),
    "ssdlite": Pair(
        partial(ssd.build, CLASSES, variant="ssdlite320"),
        lambda: torchvision.ssdlite320_mobilenet_v3_large(**NO_WEIGHTS),
        "ssdlite_mobilenet_v3_large",
        step=8,
        size=(320, 320),
        **ONE_STAGE,
    ),
}


# ---- what both are given


def make_batch(size: tuple[int, int], pictures: int, count: int, rows: int) -> Batch:
    """Pictures with `count` objects each, ellipses in their boxes, in `rows` rows."""
    rng = np.random.default_rng(0)
    height, width = size
    picture = (resize(astronaut(), size) - MEAN) / STD
    shifted = [np.roll(picture, i // 2 * width // 4, axis=1) for i in range(pictures)]
    mirrored = [x[:, :: (-1) ** i] for i, x in enumerate(shifted)]
    side = np.exp(rng.uniform(np.log(height / 16), np.log(height / 2), (pictures, rows, 2)))
    corner = rng.uniform(0, 1, side.shape) * ((width, height) - side)
    boxes = np.concatenate([corner, corner + side], axis=-1)
    y, x = np.mgrid[:height, :width] + 0.5
    masks = np.zeros((pictures, rows, height, width), bool)
    for place in np.ndindex(pictures, count):
        half, centre = side[place] / 2, corner[place] + side[place] / 2
        masks[place] = ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 < 1
    there = np.arange(rows) < count
    labels = rng.integers(1, CLASSES, (pictures, rows))
    return {
        "image": np.stack(mirrored).astype(np.float32),
        "image_size": np.tile(np.array(size, np.int32), (pictures, 1)),
        "valid": np.ones(pictures, bool),
        "boxes": np.where(there[:, None], boxes, 0).astype(np.float32),
        "labels": np.where(there, labels, 0).astype(np.int32),
        "object_mask": np.tile(there, (pictures, 1)),
        "masks": np.packbits(masks, axis=-1),
    }


def make_variables(model: Model, batch: Batch) -> Variables:
    """Random ones that detect something, and not too much: the branches of the residual blocks
    halved, or values grow with every block, and SSD300's fc6 smaller, as its colours are large;
    deltas of proposals small; class logits large, and those of SSD's background larger."""
    changes = {
        "conv3/norm/scale": lambda x: 0.5 * x,
        "fc6/conv/kernel": lambda x: x / 32,
        "rpn/deltas/kernel": lambda x: 0.1 * x,
        "(box_predictor|class_head)/logits/kernel": lambda x: 2 * x,
        r"head\d/logits/bias": partial(favour_background, by=14),
    }

    def tame(path: tuple, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for end, change in changes.items():
            if re.search(f"{end}$", name):
                return change(x)
        return x

    return jax.tree_util.tree_map_with_path(tame, model.init(jax.random.key(0), batch))


def favour_background(bias: jax.Array, by: float) -> jax.Array:
    """The bias [A·K] of class logits, where the first of K is the background's."""
    return bias.reshape(-1, CLASSES).at[:, 0].add(by).reshape(-1)


# ---- ours


def our_detector(model: Model, variables: Variables, image: np.ndarray) -> Callable:
    """A function of nothing, or of other variables, that gives the detections."""
    image = jnp.asarray(image)
    detect = jax.jit(model.predict).lower(variables, image).compile()
    return lambda variables=variables: jax.block_until_ready(detect(variables, image))


def our_steps(
    model: Model, variables: Variables, batches: list[Batch]
) -> tuple[list[Callable], float]:
    """(for each of the batches, of one shape, a function that makes a step; gigabytes of one)."""
    optimizer = optax.sgd(LEARNING_RATE)
    state = init_state(jax.tree.map(jnp.copy, variables), optimizer, ema=False)
    batches = [jax.tree.map(jnp.asarray, batch) for batch in batches]
    step = jax.jit(make_step(model, optimizer, seed=0), donate_argnums=0)
    step = step.lower(state, batches[0]).compile()
    plan = step.memory_analysis()

    def run(batch: Batch) -> dict[str, Any]:
        nonlocal state
        state, report = step(state, batch)
        assert jax.block_until_ready((state, report))[1].finite
        return report.losses

    runs = [lambda batch=batch: run(batch) for batch in batches]
    return runs, (plan.argument_size_in_bytes + plan.temp_size_in_bytes) / 1e9


# ---- theirs


def their_network(pair: Pair, variables: Variables) -> Any:
    """Without what torchvision does to images before, and to boxes and masks after."""
    network = pair.theirs()
    overwrite_eps(network, 0.0)
    state = to_torchvision(variables, pair.family)
    left = network.load_state_dict({key: put(x) for key, x in state.items()}, strict=False)
    assert not left.missing_keys, left.missing_keys
    assert all(key.endswith("num_batches_tracked") for key in left.unexpected_keys), left
    network.transform.forward = lambda images, targets=None: (
        ImageList(images, [pair.size] * len(images)),
        targets,
    )
    network.transform.postprocess = lambda found, *_: found
    return network.to(device())


def their_detector(network: Any, image: np.ndarray) -> Callable:
    x = their_images(network, image)

    def detect(memory_format) -> list[dict]:
        with torch.inference_mode():
            return wait(network.eval()(x.contiguous(memory_format=memory_format)))

    return in_faster_format(network, detect)


def their_step(network: Any, batch: Batch) -> Callable:
    x, targets = their_images(network, batch["image"]), their_targets(batch)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE)

    def step(memory_format) -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = network.train()(x.contiguous(memory_format=memory_format), targets)
        sum(losses.values()).backward()
        optimizer.step()
        wait(None)

    return in_faster_format(network, step)


def their_images(network: Any, image: np.ndarray) -> Any:
    """[B 3 H W], in the network's own colours, as ours makes them inside."""
    means, deviations = network.transform.image_mean, network.transform.image_std
    image = (image * STD + MEAN - np.float32(means)) / np.float32(deviations)
    return put(image.transpose(0, 3, 1, 2))


def their_targets(batch: Batch) -> list[dict]:
    width = batch["image"].shape[2]
    return [
        {
            "boxes": put(batch["boxes"][i][there]),
            "labels": put(batch["labels"][i][there].astype(np.int64)),
            "masks": put(np.unpackbits(batch["masks"][i][there], axis=-1, count=width)),
        }
        for i, there in enumerate(batch["object_mask"])
    ]


def in_faster_format(network: Any, run: Callable) -> Callable:
    """`run` in the memory format that it takes less time with."""
    times = {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=memory_format)
        run(memory_format)
        times[memory_format] = min(seconds(lambda it=memory_format: run(it)) for _ in range(2))
    faster = min(times, key=times.get)
    network.to(memory_format=faster)
    return lambda: run(faster)


def device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def put(array: np.ndarray) -> Any:
    return torch.from_numpy(np.array(array)).to(device())


def wait(result: Any) -> Any:
    if device() == "cuda":
        torch.cuda.synchronize()
    return result


# ---- comparing


def compare_detections(mine: dict[str, Any], others: list[dict]) -> str:
    """AssertionError unless at least 98 of 100 of their detections are ours too: where scores
    differ by rounding, another box may win, or one more reach a threshold."""
    mine, shares = jax.device_get(mine), []
    for i, other in enumerate(others):
        other = {key: x.cpu().numpy() for key, x in other.items()}
        alike = (other["labels"][:, None] == mine["labels"][i]) & mine["detection_mask"][i]
        alike &= np.abs(other["scores"][:, None] - mine["scores"][i]) < 1e-3
        alike &= np.abs(other["boxes"][:, None] - mine["boxes"][i]).max(2) < 0.1
        if "masks" in mine:
            difference = np.abs(other["masks"] - mine["masks"][i]).max((2, 3))
            alike &= difference < 1e-2
        shares.append(alike.any(1).mean())
    counts = mine["detection_mask"].sum(1).tolist()
    assert min(shares) >= 0.98, (shares, counts, [len(other["boxes"]) for other in others])
    return f"{counts} detections, {100 * min(shares):.0f} % theirs"


def compare_losses(pair: Pair, variables: Variables, network: Any, batch: Batch) -> None:
    """AssertionError unless both have the same losses when samples are the first ones."""
    model = pair.ours(settings=pair.in_order)
    losses, _ = jax.jit(model.loss)(variables, batch, jax.random.key(0))
    with torch.no_grad(), mock.patch("torch.randperm", torch.arange):
        others = network.train()(their_images(network, batch["image"]), their_targets(batch))
    for key, loss in losses.items():
        other = others[pair.losses[key]].item()
        np.testing.assert_allclose(loss.value(), other, rtol=2e-2, err_msg=key)


# ---- the race


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def take_turns(*runs: Callable) -> tuple[list[float], float]:
    """(median milliseconds of each, median of the ratios of the first to the last)."""
    for run in runs:
        run()
    times = [[seconds(run) for run in runs] for _ in range(options.rounds)]
    medians = [1e3 * statistics.median(column) for column in zip(*times, strict=True)]
    return medians, statistics.median(row[0] / row[-1] for row in times)


def race(what: str, mine: Callable, theirs: Callable | None, remark: str) -> None:
    if theirs is None:
        (time,), _ = take_turns(mine)
        line = f"{what:20} jaxseg {time:7.0f} ms"
    else:
        (time, other), ratio = take_turns(mine, theirs)
        line = f"{what:20} jaxseg {time:7.0f} ms   torchvision {other:7.0f} ms   ratio {ratio:.2f}"
        line += "   goal 1.00"
    print(f"{line}   {remark}", flush=True)


def race_detectors(name: str, model: Model, variables: Variables, network: Any) -> None:
    pair = PAIRS[name]
    for count in pair.detect:
        image = make_batch(pair.size, count, 1, 1)["image"]
        mine = our_detector(model, variables, image)
        theirs = network and their_detector(network, image)
        remark = f"{mine()['detection_mask'].sum(1).tolist()} detections"
        if theirs:
            remark = compare_detections(mine(), theirs())
        race(f"{name}, detect {count}", mine, theirs, remark)


def race_steps(name: str, model: Model, variables: Variables, network: Any) -> None:
    pair = PAIRS[name]
    batch = make_batch(pair.size, pair.step, 8, 8)
    if network:
        compare_losses(pair, variables, network, batch)
    (mine,), memory = our_steps(model, variables, [batch])
    losses = mine()
    regions = f", masks of {losses['mask'].weight:.0f} regions" if "mask" in losses else ""
    remark = f"{memory:.1f} GB{regions}"
    race(f"{name}, step", mine, network and their_step(network, batch), remark)


def vary_objects(name: str, model: Model, variables: Variables) -> None:
    """Few objects against many, with the same program."""
    steps, _ = our_steps(model, variables, [make_batch(SIZE, 2, count, 100) for count in (1, 100)])
    (one, many), ratio = take_turns(*steps)
    print(
        f"{name}, step           1 object {one:7.0f} ms   100 objects {many:7.0f} ms   "
        f"ratio {ratio:.2f}",
        flush=True,
    )
    detect = our_detector(model, variables, make_batch(SIZE, 1, 1, 1)["image"])
    predictor = variables["params"]["box_predictor"]
    logits = predictor["logits"]
    logits = logits | {"bias": favour_background(logits["bias"], by=50)}
    blind = variables["params"] | {"box_predictor": predictor | {"logits": logits}}
    blind = variables | {"params": blind}
    counts = [int(detect(it)["detection_mask"].sum()) for it in (blind, variables)]
    (none, all_of_them), ratio = take_turns(lambda: detect(blind), detect)
    print(
        f"{name}, detect 1       {counts[0]} found {none:8.0f} ms   {counts[1]} found "
        f"{all_of_them:10.0f} ms   ratio {ratio:.2f}",
        flush=True,
    )


def compile_once(name: str) -> None:
    """Print the seconds that tracing and compiling a training step take in this process."""
    pair, optimizer = PAIRS[name], optax.sgd(LEARNING_RATE)
    model, batch = pair.ours(), make_batch(pair.size, pair.step, 8, 8)

    def start(key: jax.Array) -> Any:
        return init_state(model.init(key, batch), optimizer, ema=False)

    state = jax.eval_shape(start, jax.random.key(0))
    step = jax.jit(make_step(model, optimizer, seed=0), donate_argnums=0)
    times = [time.perf_counter()]
    lowered = step.lower(state, batch)
    times.append(time.perf_counter())
    lowered.compile()
    times.append(time.perf_counter())
    print(json.dumps(np.diff(times).tolist()))


def compile_twice(name: str) -> None:
    command = [sys.executable, __file__, "--compile-only", f"--models={name}"]
    command += [f"--size={options.size}"]
    command += [f"--threads={options.threads}"] if options.threads else []
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # a GPU's memory is ours already
        }
        for which in ("new", "cached"):
            told = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            traced, compiled = json.loads(told.stdout.splitlines()[-1])
            print(
                f"{name}, step, {which:7} traced in {traced:5.1f} s, compiled in {compiled:5.1f} s",
                flush=True,
            )


def main() -> None:
    if options.compile_only:
        return compile_once(options.models)
    kind = jax.devices()[0].device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{kind}, {cores} cores, jax {jax.__version__}, {options.rounds} rounds, {SIZE}")
    if torch is None:
        print(f"no ratios: {missing}")
    else:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    parts = options.parts.split(",")
    for name in options.models.split(","):
        pair = PAIRS[name]
        model = pair.ours()
        variables = make_variables(model, make_batch(pair.size, 1, 1, 1))
        network = torch and their_network(pair, variables)
        if "detect" in parts:
            race_detectors(name, model, variables, network)
        if "step" in parts:
            race_steps(name, model, variables, network)
        if "objects" in parts and "box_predictor" in variables["params"]:
            vary_objects(name, model, variables)
        if "compile" in parts:
            compile_twice(name)


if __name__ == "__main__":
    main()
