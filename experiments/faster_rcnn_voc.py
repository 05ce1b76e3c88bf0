"""Faster R-CNN (Ren et al. 2015) on PASCAL VOC: no result has been measured yet.

`full`: the paper's, VGG16 with RoI-Pool on its single map, trained on the trainval sets of 2007 and
2012 and tested on that of 2007 (their table 3, "07+12"). FOLDER holds VOC2007 and VOC2012. A step
sees one picture, so this is for one device.

    python -m jaxseg.main --config=experiments/faster_rcnn_voc.py --workdir=RUN \\
        --config.data.source=FOLDER --config.init_from=vgg16.pth

`fpn`: ResNet-50 with a feature pyramid on the same pictures, by Detectron2's schedule for them, for
8 devices of 2 pictures.

    python -m jaxseg.main --config=experiments/faster_rcnn_voc.py:fpn --workdir=RUN \\
        --config.data.source=FOLDER --config.init_from=resnet50.pth

`cpu`: a small network from scratch, for a miniature of VOC 2012.

    python -m jaxseg.main --config=experiments/faster_rcnn_voc.py:cpu --workdir=RUN \\
        --config.data.source=FOLDER

The paper's details are those of sections 3.1.3 (256 anchors a picture; SGD at 0.001 for 60,000
steps, then at 0.0001 for 20,000; the first two stages of VGG16 stay as they are) and 3.3 (600
pixels, anchors of 128, 256 and 512, 2,000 proposals in training, 300 in testing). What it leaves
open is as in the authors' Python code. Not theirs: training is joint (their section 3.2, ii), where
table 3 alternates; and anchors that cross the border learn, too.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "fpn", "cpu"):
        raise ValueError(f'variant {variant!r}, expected "full", "fpn" or "cpu"')
    config = jaxseg_config.default()
    config.task = "detection_voc"
    config.best_metric = "voc_AP_11_point"
    config.parallel = "pmap"
    config.model.name = "faster_rcnn"
    config.data.name = "voc"
    config.data.options.task = "detection"
    config.data.max_objects = 64
    config.augment.flip = True
    {"full": as_published, "fpn": on_a_pyramid, "cpu": small}[variant](config)
    return config


def on_07_and_12(config: ConfigDict, shorter: int, longer: int) -> None:
    """VOC's pictures are 500 pixels long, most of them 4:3."""
    config.data.options.update(year=("2007", "2012"), splits=("trainval", "test"))
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    config.data.resize = (shorter, longer)
    high, wide, widest = (-(-side // 32) * 32 for side in (shorter, 4 * shorter // 3, longer))
    config.data.buckets = ((high, wide), (high, widest), (wide, high), (widest, high))
    config.data.num_workers = 8
    config.dtype = "bfloat16"


def as_published(config: ConfigDict) -> None:
    on_07_and_12(config, 600, 1000)
    config.steps = 80_000
    config.eval_every = 20_000
    config.checkpoint_every = 1000
    config.model.update(
        backbone="vgg16",
        pyramid=False,
        pooling="max",
        box_dense=(4096, 4096),
        box_dropout=0.5,
        norm="none",
        settings=dict(
            anchor_sizes=((128, 256, 512),),
            proposals_per_level=(12_000, 6000),
            proposals=(2000, 300),
            region_samples=128,
            detection_iou=0.3,
        ),
    )
    config.data.batch_size = 1
    config.data.eval_batch_size = 1
    config.optim.name = "sgd"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "step"
    config.optim.milestones = (60_000,)
    config.optim.weight_decay = 5e-4
    config.optim.multipliers["^backbone/stage[12]_"] = 0.0


def on_a_pyramid(config: ConfigDict) -> None:
    on_07_and_12(config, 800, 1333)
    config.steps = 18_000
    config.eval_every = 6000
    config.checkpoint_every = 1000
    config.model.update(backbone="resnet50")
    config.data.batch_size = 16
    config.data.eval_batch_size = 16
    config.augment.min_sizes = tuple(range(480, 801, 32))
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.02
    config.optim.schedule = "step"
    config.optim.milestones = (12_000, 16_000)
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 1e-4
    config.optim.multipliers["^backbone/(stem|stage1)"] = 0.0


def small(config: ConfigDict) -> None:
    config.steps = 1500
    config.eval_every = 500
    config.checkpoint_every = 250
    config.model.update(
        backbone="resnet18",
        width=32,
        features=64,
        box_dense=(256, 256),
        norm="batch",
        neck_norm="batch",
        settings=dict(
            anchor_sizes=((16,), (32,), (64,), (128,), (256,)),
            rpn_samples=128,
            proposals_per_level=(300, 300),
            proposals=(300, 300),
            region_samples=96,
        ),
    )
    config.data.image_size = config.data.crop_size = (256, 256)
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.augment.scales = (0.6, 1.5)
    config.augment.min_visible = 0.2
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.3
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 200
    config.optim.weight_decay = 1e-3
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.998
