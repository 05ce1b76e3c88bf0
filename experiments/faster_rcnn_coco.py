"""Faster R-CNN (Ren et al. 2015) on COCO 2017.

`full`: ResNet-50-FPN with the schedule that torchvision publishes, for 8 devices of 2 images; `v2`:
the improved network in the same schedule (its published weights were trained for longer). FOLDER
holds train2017, val2017 and annotations; the backbone starts from ImageNet.

    python -m jaxseg.main --config=experiments/faster_rcnn_coco.py --workdir=RUN \\
        --config.data.source=FOLDER --config.init_from=resnet50.pth

`published`, `published_v2` and `published_mobilenet`: torchvision's checkpoints as they are, only
scored on val2017; of FOLDER nothing else is read.

    python -m jaxseg.main --config=experiments/faster_rcnn_coco.py:published --workdir=RUN \\
        --config.data.source=FOLDER --config.init_from=fasterrcnn_resnet50_fpn.pth

`mobilenet`: the same on MobileNetV3 at 320 pixels, for devices with little memory, from
mobilenet_v3_large.pth; published as fasterrcnn_mobilenet_v3_large_320_fpn.pth. `cpu`: a small
network from scratch, for a miniature of COCO.

    python -m jaxseg.main --config=experiments/faster_rcnn_coco.py:cpu --workdir=RUN \\
        --config.data.source=FOLDER

Measured, `cpu`, on 80 pictures: AP 0.002 (0.006 after 1000 steps), which is next to nothing, in 19
minutes on 2 CPU cores that had other work, too.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config
from jaxseg.models.faster_rcnn import V2

VARIANTS = ("full", "v2", "mobilenet", "published", "published_v2", "published_mobilenet", "cpu")
LANDSCAPE_AND_PORTRAIT = ((800, 1088), (800, 1344), (1088, 800), (1344, 800))


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}, expected one of {', '.join(VARIANTS)}")
    config = jaxseg_config.default()
    config.task = "detection"
    config.best_metric = "AP"
    config.parallel = "pmap"
    config.data.name = "coco"
    config.data.options.masks = False
    config.data.options.with_objects = ("train",)  # without pictures that show none
    config.data.max_objects = 100
    config.augment.flip = True
    (small if variant == "cpu" else large)(config, variant)
    return config


def large(config: ConfigDict, variant: str) -> None:
    """26 epochs of 117,266 images, 16 at a time."""
    epoch = 117_266 // 16
    config.steps = 26 * epoch
    config.eval_every = 2 * epoch
    config.checkpoint_every = 1000
    config.dtype = "bfloat16"
    config.model.update(name="faster_rcnn", backbone="resnet50")
    config.data.resize = (800, 1333)
    config.data.buckets = LANDSCAPE_AND_PORTRAIT
    if variant.endswith("v2"):
        config.model.update(V2)
    elif variant.endswith("mobilenet"):
        on_mobilenet(config)
    else:
        config.optim.multipliers["^backbone/(stem|stage1)"] = 0.0
    if variant.startswith("published"):
        config.steps, config.dtype = 0, "float32"
        # Theirs are COCO's own ids, 1 to 90. Of FOLDER only val2017 is read.
        config.data.options.update(sparse_labels=True, splits=("val",), with_objects=())
        config.data.train_split = "val"
    if variant == "published":
        config.model.norm_epsilon = 0.0
    config.data.batch_size = 16
    config.data.eval_batch_size = 16
    config.data.num_workers = 16
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.02
    config.optim.schedule = "step"
    config.optim.milestones = (16 * epoch, 22 * epoch)
    config.optim.warmup_steps = 1000
    config.optim.weight_decay = 1e-4


def on_mobilenet(config: ConfigDict) -> None:
    config.model.update(
        backbone="mobilenet_v3_large",
        width=16,
        norm_epsilon=1e-5,  # of torchvision's frozen norms; MobileNet's own is 1e-3
        settings=dict(
            anchor_sizes=((32, 64, 128, 256, 512),) * 3,
            proposals_per_level=(2000, 150),
            proposals=(2000, 150),
            min_proposal_score=0.05,
        ),
    )
    config.optim.multipliers["^backbone/(stem|block[1-6]/)"] = 0.0
    config.data.resize = (320, 640)
    config.data.buckets = ((320, 448), (320, 640), (448, 320), (640, 320))


def small(config: ConfigDict, _: str) -> None:
    config.steps = 1500
    config.eval_every = 500
    config.checkpoint_every = 250
    config.model.update(
        name="faster_rcnn",
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
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 200
    config.optim.weight_decay = 1e-3
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.998
