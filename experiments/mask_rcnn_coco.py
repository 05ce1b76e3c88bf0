"""Mask R-CNN (He et al. 2017) on COCO 2017.

`full`: ResNet-50-FPN with the schedule that torchvision publishes, for 8 devices of 2 images; `v2`:
the improved network in the same schedule (its published weights were trained for longer). FOLDER
holds train2017, val2017 and annotations; the backbone starts from ImageNet.

    python -m jaxseg.main --config=experiments/mask_rcnn_coco.py --workdir=RUN \\
        --config.data.source=FOLDER --config.init_from=resnet50.pth

`published` and `published_v2`: torchvision's checkpoints as they are, only scored on val2017; of
FOLDER nothing else is read.

    python -m jaxseg.main --config=experiments/mask_rcnn_coco.py:published --workdir=RUN \\
        --config.data.source=FOLDER --config.init_from=maskrcnn_resnet50_fpn.pth

`cpu`: shows that nothing on the way from annotations to scores is lossy. A small network learns 20
images by heart, from scratch, and is scored on the same: box AP 0.933, mask AP 0.808 (RESULTS.md).

    python -m jaxseg.main --config=experiments/mask_rcnn_coco.py:cpu --workdir=RUN \\
        --config.data.source=FOLDER
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config
from jaxseg.models.faster_rcnn import V2

VARIANTS = ("full", "v2", "published", "published_v2", "cpu")


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}, expected one of {', '.join(VARIANTS)}")
    config = jaxseg_config.default()
    config.task = "detection"
    config.best_metric = "mask_AP"
    config.parallel = "pmap"
    config.data.name = "coco"
    config.data.options.with_objects = ("train",)  # without pictures that show none
    config.data.max_objects = 100
    (by_heart if variant == "cpu" else large)(config, variant)
    return config


def large(config: ConfigDict, variant: str) -> None:
    """26 epochs of 117,266 images, 16 at a time."""
    epoch = 117_266 // 16
    config.steps = 26 * epoch
    config.eval_every = 2 * epoch
    config.checkpoint_every = 1000
    config.dtype = "bfloat16"
    config.model.update(name="mask_rcnn", backbone="resnet50")
    if variant.endswith("v2"):
        config.model.update(V2)
    else:
        config.optim.multipliers["^backbone/(stem|stage1)"] = 0.0
    if variant.startswith("published"):
        config.steps, config.dtype = 0, "float32"
        # Theirs are COCO's own ids, 1 to 90. Of FOLDER only val2017 is read.
        config.data.options.update(sparse_labels=True, splits=("val",), with_objects=())
        config.data.train_split = "val"
    if variant == "published":
        config.model.norm_epsilon = 0.0
    config.data.resize = (800, 1333)
    config.data.buckets = ((800, 1088), (800, 1344), (1088, 800), (1344, 800))
    config.data.batch_size = 16
    config.data.eval_batch_size = 16
    config.data.num_workers = 16
    config.augment.flip = True
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.02
    config.optim.schedule = "step"
    config.optim.milestones = (16 * epoch, 22 * epoch)
    config.optim.warmup_steps = 1000
    config.optim.weight_decay = 1e-4


def by_heart(config: ConfigDict, _: str) -> None:
    config.steps = 2000
    config.eval_every = 500
    config.checkpoint_every = 250
    config.model.update(
        name="mask_rcnn",
        backbone="resnet18",
        width=32,
        features=64,
        box_dense=(256, 256),
        mask_features=64,
        mask_convolutions=4,
        mask_size=56,
        aligned=True,  # else true masks, cut out and put back, have a mask AP of 0.776, not 0.924
        norm="group",
        neck_norm="group",
        settings=dict(
            anchor_sizes=((8, 16), (24, 32), (48, 64), (96, 128), (192, 256)),
            rpn_samples=128,
            proposals_per_level=(300, 300),
            proposals=(300, 300),
            region_samples=96,
        ),
    )
    config.data.train_split = config.data.eval_split = "train"
    config.data.limit = 20
    config.data.image_size = config.data.crop_size = (384, 384)
    config.data.resize = (384, 384)
    config.data.batch_size = 4
    config.data.eval_batch_size = 4
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.99
