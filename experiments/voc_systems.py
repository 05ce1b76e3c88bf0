"""Detectors of one stage on PASCAL VOC, each by the schedule that it was published with.

    python -m jaxseg.main --config=experiments/voc_systems.py:ssd300,full --workdir=RUN \\
        --config.data.source=FOLDER --config.init_from=vgg16.pth

`full`: trained on the trainval sets of 2007 and 2012, tested on that of 2007; FOLDER holds VOC2007
and VOC2012. What is published, and what the backbone starts from:

    yolo            its paper's schedule; from nothing, as there are no weights of its classifier,
                    and so with batch norm, which Darknet gave it later
    yolov3          Darknet's yolov3-voc.cfg, at one size (see `as_yolov3`);
                    --config.init_from=yolov3.weights, of COCO, with --config.init_part=/backbone/
    yolox           its paper's schedule, as far as `as_yolox` says; from nothing
    ssd300, ssd512  their paper's schedule; vgg16.pth
    retinanet fcos  MMDetection's schedule for RetinaNet on VOC; resnet50.pth

`cpu`: small networks and pictures, from scratch, for any year: FOLDER holds VOC2012, or VOC2007
with --config.data.options.year=2007.

    python -m jaxseg.main --config=experiments/voc_systems.py:yolox,cpu --workdir=RUN \\
        --config.data.source=FOLDER

From the 70 pictures of a miniature of VOC 2012 nobody learns 20 classes: on its other 30 AP (by 11
points) is 0.061 of `ssd300` and 0.017 of `yolox`, after 14 and 8 minutes on a CPU with other work.
What the networks can learn is seen on BCCD (`bccd_systems.py`). `full` has not been run.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config
from jaxseg.models.yolov3 import TINY_ANCHORS

VARIANTS = ("full", "cpu")
PICTURES = 5011 + 11_540  # of both trainval sets
LANDSCAPE_AND_PORTRAIT = ((608, 800), (608, 1024), (800, 608), (1024, 608))
HALF_ANCHORS = tuple((16 * 2**i, 20 * 2**i, 25 * 2**i) for i in range(5))  # of the published
SMALL = dict(
    backbone="resnet18", width=32, features=64, convolutions=2, norm="batch", head_norm="group"
)
SMALL_SSD = dict(variant="resnet", backbone="resnet18", width=32)


class System(NamedTuple):
    full: dict  # the published model
    cpu: dict  # what changes of it where it is small
    train: Callable[[ConfigDict], None]  # puts the published schedule and pictures into a config
    side: int = 224  # of the small one's pictures, in pixels


def by_steps(
    config: ConfigDict, batch: int, steps: int, drops: tuple[int, ...], rate: float, decay: float
) -> None:
    """SGD whose rate drops by 10 at some steps."""
    config.steps, config.eval_every = steps, steps // 10
    config.data.batch_size = batch
    config.optim.update(name="sgd", schedule="step", milestones=drops)
    config.optim.update(learning_rate=rate, weight_decay=decay)


def colours(config: ConfigDict, brightness: float, contrast: float, hue: float) -> None:
    config.augment.update(brightness=brightness, contrast=contrast, saturation=0.5, hue=hue)


def as_yolo(config: ConfigDict) -> None:
    """Redmon et al. 2016, section 2.2. Its first epochs raise the rate slowly: here three, from 0.
    Exposure is brightness here, and its factor and that of saturation are 0.5 to 1.5."""
    epoch = PICTURES // 64
    by_steps(config, 64, 135 * epoch, (75 * epoch, 105 * epoch), 1e-2, 5e-4)
    config.optim.warmup_steps = 3 * epoch
    config.data.stretch = True
    config.data.image_size = config.data.crop_size = (448, 448)
    # Sizes of 0.8 to 1.2; a larger picture is cut anywhere, a smaller one lies anywhere.
    config.augment.update(scales=(1.0, 1.2), expand=1.25)
    colours(config, 0.5, 0.0, 0.0)


def as_yolov3(config: ConfigDict) -> None:
    """yolov3-voc.cfg, but always at 416×416: its `random=1`, another size of pictures every ten
    batches, is missing."""
    by_steps(config, 64, 50_200, (40_000, 45_000), 1e-3, 5e-4)
    config.optim.warmup_steps = 1000
    config.data.resize = config.data.image_size = config.data.crop_size = (416, 416)
    config.augment.scales = (0.7, 1.4)
    colours(config, 0.5, 0.0, 0.1)


def as_yolox(config: ConfigDict) -> None:
    """Ge et al. 2021, section 2.1: 300 epochs, of which 5 raise the rate, and the last 15 are
    without mosaic and MixUp, and with an L1 loss.

    The authors' rate falls to a twentieth, where it stays for these; here it falls to 0 before, and
    they are a second run with a new optimiser. Rotation and shear, several sizes of pictures and
    Nesterov's momentum are missing."""
    epoch = PICTURES // 64
    by_steps(config, 64, 285 * epoch, (), 1e-2, 5e-4)
    config.optim.update(schedule="cosine", warmup_steps=5 * epoch, ema_decay=0.9998)
    config.data.resize = config.data.image_size = config.data.crop_size = (640, 640)
    config.augment.update(mosaic=1.0, mixup=1.0, scales=(0.5, 1.5), min_visible=0.2)
    colours(config, 0.5, 0.0, 0.1)
    last = {"augment.mosaic": 0.0, "augment.mixup": 0.0, "augment.scales": (1.0, 1.0)}
    last["model.settings.l1"] = True
    rate = {"optim.schedule": "constant", "optim.warmup_steps": 0, "optim.learning_rate": 5e-4}
    config.stages = ({}, {"steps": 15 * epoch, **last, **rate})


def as_ssd(config: ConfigDict, side: int) -> None:
    """Liu et al. 2016, sections 2.2 and 3.1, twice as long for zooming out (section 3.6). Colours
    change each half of the time."""
    by_steps(config, 32, 120_000, (80_000, 100_000), 1e-3, 5e-4)
    config.data.stretch = True
    config.data.image_size = config.data.crop_size = (side, side)
    config.augment.crop_overlaps = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    config.augment.update(expand=4.0, color_probability=0.5, channel_shuffle=0.5)
    colours(config, 0.125, 0.5, 0.05)


def as_retinanet(config: ConfigDict) -> None:
    epoch = PICTURES // 16
    by_steps(config, 16, 12 * epoch, (9 * epoch,), 1e-2, 1e-4)
    config.optim.warmup_steps = 500
    config.optim.multipliers["^backbone/(stem|stage1)"] = 0.0
    config.data.resize = (600, 1000)
    config.data.buckets = LANDSCAPE_AND_PORTRAIT


SYSTEMS = {
    "yolo": System(
        dict(name="yolo", norm="batch"),
        # 7×7 cells, too. A dense layer would have most of the parameters.
        dict(backbone="fast_yolo", width=8, stride=32, dense=()),
        as_yolo,
    ),
    "yolov3": System(
        dict(name="yolov3"),
        dict(
            tiny=True,
            settings=dict(
                anchors=tuple((round(w * 224 / 416), round(h * 224 / 416)) for w, h in TINY_ANCHORS)
            ),
        ),
        as_yolov3,
    ),
    "yolox": System(
        dict(name="yolox", size="s", settings=dict(l1=False)), dict(width=0.25), as_yolox
    ),
    # Of SSD300 the scales for VOC (section 3.1); colours are those of torchvision's VGG16.
    "ssd300": System(
        dict(
            name="ssd",
            variant="ssd300",
            colours=None,
            settings=dict(scales=(0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)),
        ),
        SMALL_SSD,
        partial(as_ssd, side=300),
    ),
    "ssd512": System(
        dict(name="ssd", variant="ssd512", colours=None),
        SMALL_SSD,
        partial(as_ssd, side=512),
        side=320,
    ),
    "retinanet": System(
        dict(name="retinanet"), SMALL | dict(settings=dict(anchor_sizes=HALF_ANCHORS)), as_retinanet
    ),
    # VOC's AP counts weak detections, too.
    "fcos": System(dict(name="fcos", settings=dict(min_score=0.05)), SMALL, as_retinanet),
}


def get_config(argument: str = "ssd300,full") -> ConfigDict:
    """argument: SYSTEM or SYSTEM,VARIANT."""
    system, _, variant = argument.partition(",")
    variant = variant or "full"
    if system not in SYSTEMS or variant not in VARIANTS:
        names = ", ".join(SYSTEMS)
        raise ValueError(f'{argument!r}, expected SYSTEM,VARIANT of {names} and "full" or "cpu"')
    chosen = SYSTEMS[system]
    config = jaxseg_config.default()
    config.task = "detection_voc"
    config.best_metric = "voc_AP_11_point"
    config.parallel = "pmap"
    config.data.name = "voc"
    config.data.options.task = "detection"
    config.data.max_objects = 64
    config.augment.flip = True
    config.model.update(chosen.full)
    if variant == "cpu":
        small(config, chosen)
        return config
    chosen.train(config)
    config.data.options.update(year=("2007", "2012"), splits=("trainval", "test"))
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    config.data.eval_batch_size = 16
    config.data.num_workers = 8
    config.dtype = "bfloat16"
    config.checkpoint_every = 1000
    return config


def small(config: ConfigDict, system: System) -> None:
    config.model.update(system.cpu)
    config.steps = 1000
    config.eval_every = 500
    config.checkpoint_every = 250
    config.data.options.year = "2012"
    config.data.image_size = config.data.crop_size = (system.side, system.side)
    config.data.batch_size = config.data.eval_batch_size = 8
    config.augment.scales = (0.6, 1.5)
    config.augment.min_visible = 0.2
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.3
    config.optim.update(name="adamw", learning_rate=1e-3, schedule="cosine", warmup_steps=200)
    config.optim.update(weight_decay=1e-3, clip_norm=10.0, ema_decay=0.998)
