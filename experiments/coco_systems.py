"""Detectors of one stage on COCO 2017, each by the schedule that it was published with.

    python -m jaxseg.main --config=experiments/coco_systems.py:retinanet,full --workdir=RUN \\
        --config.data.source=FOLDER --config.init_from=resnet50.pth

`full`: FOLDER holds train2017, val2017 and annotations. `retinanet`, `fcos`, `ssd300` and
`ssdlite320` as torchvision publishes how it trained them, `retinanet_v2` like them, with nothing
frozen; `yolov3` by Darknet's cfg and `yolox` by its paper, as far as `as_yolov3` and `as_yolox`
say. The backbone starts from ImageNet where there are weights for it: resnet50.pth, and vgg16.pth
for `ssd300` (`yolov3`, `ssdlite320` and `yolox` start from nothing).

`published`: torchvision's checkpoints, or Darknet's, as they are, only scored on val2017, and of
FOLDER nothing else is read: `--config.init_from=retinanet_resnet50_fpn.pth`, or `yolov3.weights`
with `yolov3.cfg` beside it.

`cpu`: small networks from scratch, for a miniature of COCO. Of `retinanet` AP is 0.001 on 40
pictures after 80 of 80 classes and 1500 steps (40 minutes beside other work): this shows that it
runs. What the networks can learn is seen on BCCD (`bccd_systems.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config
from jaxseg.models.retinanet import V2

VARIANTS = ("full", "published", "cpu")
PUBLISHED = ("retinanet", "retinanet_v2", "fcos", "ssd300", "ssdlite320", "yolov3")
EPOCH = 117_266  # pictures with objects
LANDSCAPE_AND_PORTRAIT = ((800, 1088), (800, 1344), (1088, 800), (1344, 800))
SMALL = dict(backbone="resnet18", width=32, features=64, convolutions=2, norm="batch")


class System(NamedTuple):
    full: dict  # the published model
    cpu: dict  # what changes of it where it is small
    train: Callable[[ConfigDict], None]  # puts the published schedule and pictures into a config


def by_steps(config: ConfigDict, epochs: int, drops: tuple[int, ...], batch: int) -> None:
    """SGD whose rate drops by 10 after some epochs."""
    epoch = EPOCH // batch
    config.steps, config.eval_every = epochs * epoch, 2 * epoch
    config.data.batch_size = batch
    config.optim.update(name="sgd", schedule="step", warmup_steps=1000, weight_decay=1e-4)
    config.optim.milestones = tuple(drop * epoch for drop in drops)


def as_faster_rcnn(config: ConfigDict) -> None:
    by_steps(config, 26, (16, 22), 16)
    config.optim.learning_rate = 0.01
    config.data.resize = (800, 1333)
    config.data.buckets = LANDSCAPE_AND_PORTRAIT


def as_retinanet(config: ConfigDict) -> None:
    as_faster_rcnn(config)
    config.optim.multipliers["^backbone/(stem|stage1)"] = 0.0


def on_squares(config: ConfigDict, side: int) -> None:
    """Liu et al. 2016, section 2.2: pictures of one size, sampled patches."""
    config.data.stretch = True
    config.data.image_size = config.data.crop_size = (side, side)
    config.augment.crop_overlaps = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def as_ssd(config: ConfigDict) -> None:
    by_steps(config, 120, (80, 110), 32)
    config.optim.update(learning_rate=0.002, weight_decay=5e-4)
    config.optim.multipliers["^backbone/stage1"] = 0.0
    on_squares(config, 300)
    config.augment.expand = 4.0
    # "Photo-metric distortions", each half of the time (section 2.2).
    config.augment.brightness, config.augment.hue = 0.125, 0.05
    config.augment.contrast = config.augment.saturation = 0.5
    config.augment.color_probability = config.augment.channel_shuffle = 0.5


def as_ssdlite(config: ConfigDict) -> None:
    by_steps(config, 660, (), 192)
    config.optim.update(schedule="cosine", learning_rate=0.15, weight_decay=4e-5)
    on_squares(config, 320)


def as_yolov3(config: ConfigDict) -> None:
    """yolov3.cfg, but always at 416×416: its `random=1`, another size of pictures every ten
    batches, is missing."""
    by_steps(config, 1, (), 64)
    config.steps, config.eval_every = 500_200, 10_000
    config.optim.milestones = (400_000, 450_000)
    config.optim.update(learning_rate=1e-3, weight_decay=5e-4)
    config.data.resize = config.data.image_size = config.data.crop_size = (416, 416)
    config.augment.scales = (0.7, 1.4)
    config.augment.brightness = config.augment.saturation = 0.5
    config.augment.hue = 0.1


def as_yolox(config: ConfigDict) -> None:
    """Ge et al. 2021, section 2.1: 300 epochs, the last 15 without mosaic and MixUp, and with an
    L1 loss.

    The authors' rate falls to a twentieth, where it stays for these; here it falls to 0 before, and
    they are a second run with a new optimiser. Rotation and shear, several sizes of pictures and
    Nesterov's momentum are missing."""
    epoch = EPOCH // 64
    by_steps(config, 285, (), 64)
    config.optim.update(schedule="cosine", learning_rate=0.01, weight_decay=5e-4)
    config.optim.update(warmup_steps=5 * epoch, ema_decay=0.9998)
    last = {"augment.mosaic": 0.0, "augment.mixup": 0.0, "augment.scales": (1.0, 1.0)}
    last["model.settings.l1"] = True
    rate = {"optim.schedule": "constant", "optim.warmup_steps": 0, "optim.learning_rate": 5e-4}
    config.stages = ({}, {"steps": 15 * epoch, **last, **rate})
    config.data.resize = config.data.image_size = config.data.crop_size = (640, 640)
    config.augment.update(mosaic=1.0, mixup=1.0, scales=(0.5, 1.5), min_visible=0.2)
    config.augment.brightness = config.augment.saturation = 0.5
    config.augment.hue = 0.1


_GIOU = dict(box_loss="giou")
SYSTEMS = {
    "retinanet": System(dict(name="retinanet"), SMALL, as_retinanet),
    "retinanet_v2": System(dict(name="retinanet", settings=_GIOU, **V2), SMALL, as_faster_rcnn),
    "fcos": System(dict(name="fcos"), SMALL, as_retinanet),
    "ssd300": System(
        dict(name="ssd", variant="ssd300"),
        dict(variant="resnet", backbone="resnet18", width=32),
        as_ssd,
    ),
    "ssdlite320": System(dict(name="ssd", variant="ssdlite320"), {}, as_ssdlite),
    "yolov3": System(
        dict(name="yolov3", settings=dict(ignore_iou=0.7)), dict(tiny=True), as_yolov3
    ),
    "yolox": System(
        dict(name="yolox", size="s", settings=dict(l1=False)), dict(width=0.25), as_yolox
    ),
}


def get_config(argument: str = "retinanet,full") -> ConfigDict:
    """argument: SYSTEM or SYSTEM,VARIANT."""
    system, _, variant = argument.partition(",")
    variant = variant or "full"
    if system not in SYSTEMS or variant not in VARIANTS:
        names = ", ".join(SYSTEMS)
        raise ValueError(
            f'{argument!r}, expected SYSTEM,VARIANT of {names} and "full", "published" or "cpu"'
        )
    if variant == "published" and system not in PUBLISHED:
        raise ValueError(f"{argument!r}: no checkpoint, expected one of {', '.join(PUBLISHED)}")
    model, narrow, train = SYSTEMS[system]
    config = jaxseg_config.default()
    config.task = "detection"
    config.best_metric = "AP"
    config.parallel = "pmap"
    config.data.name = "coco"
    config.data.options.masks = False
    config.data.options.with_objects = ("train",)  # without pictures that show none
    config.data.max_objects = 100
    config.augment.flip = True
    config.model.update(model)
    if variant == "cpu":
        small(config, narrow)
        return config
    train(config)
    config.dtype = "bfloat16"
    config.checkpoint_every = 1000
    config.data.eval_batch_size = 16
    config.data.num_workers = 16
    if variant == "published":
        config.steps, config.dtype = 0, "float32"
        config.data.options.update(splits=("val",), with_objects=())
        config.data.options.sparse_labels = system != "yolov3"  # torchvision's are COCO's ids
        config.data.train_split = "val"
        if system == "retinanet":
            config.model.norm_epsilon = 0.0
    elif system == "ssd300":
        config.model.colours = None  # of vgg16.pth; torchvision starts from another file
    return config


def small(config: ConfigDict, narrow: dict) -> None:
    config.model.update(narrow)
    config.steps = 1500
    config.eval_every = 500
    config.checkpoint_every = 250
    config.data.image_size = config.data.crop_size = (256, 256)
    config.data.batch_size = config.data.eval_batch_size = 8
    config.augment.scales = (0.6, 1.5)
    config.augment.min_visible = 0.2
    config.optim.update(name="adamw", learning_rate=1e-3, schedule="cosine", warmup_steps=200)
    config.optim.update(weight_decay=1e-3, clip_norm=10.0, ema_decay=0.998)
