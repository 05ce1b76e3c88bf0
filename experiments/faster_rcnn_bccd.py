"""Faster R-CNN (Ren et al. 2015) on BCCD: red cells, white cells and platelets in blood, from
scratch. 292 training images, 72 test images.

    python -m jaxseg.main --config=experiments/faster_rcnn_bccd.py --workdir=RUN \\
        --config.data.source=FOLDER                                        # 480×640
    python -m jaxseg.main --config=experiments/faster_rcnn_bccd.py:cpu --workdir=RUN \\
        --config.data.source=FOLDER                                        # 240×320

Measured, `cpu`: AP50 0.913, AP 0.617 on the test split, in 34 minutes on 2 CPU cores that had other
work, too.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "cpu"):
        raise ValueError(f'variant {variant!r}, expected "full" or "cpu"')
    cpu = variant == "cpu"
    config = jaxseg_config.default()
    config.task = "detection"
    config.best_metric = "AP50"
    config.steps = 3000 if cpu else 12_000
    config.eval_every = 500 if cpu else 2000
    config.checkpoint_every = 250
    config.parallel = "pmap"
    config.dtype = "float32" if cpu else "bfloat16"
    unit = 1 if cpu else 2
    sizes = (16, 24), (40, 56), (80, 112), (160, 224)
    config.model.update(
        name="faster_rcnn",
        backbone="resnet18" if cpu else "resnet50",
        width=32 if cpu else 64,
        levels=(8, 16, 32),
        features=64 if cpu else 256,
        box_dense=(256, 256) if cpu else (1024, 1024),
        norm="batch",
        neck_norm="batch",
        settings=dict(
            # Platelets of 20 pixels, red cells of 50, white ones of 100, at 240×320.
            anchor_sizes=tuple((unit * a, unit * b) for a, b in sizes),
            aspect_ratios=(0.7, 1.0, 1.4),
            rpn_samples=128,
            proposals_per_level=(300, 300),
            proposals=(300, 300),
            region_samples=96,
        ),
    )
    config.data.name = "bccd"
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    config.data.image_size = (240, 320) if cpu else (480, 640)
    config.data.crop_size = config.data.image_size
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.data.max_objects = 64
    config.augment.scales = (0.8, 1.4)
    config.augment.min_visible = 0.3
    config.augment.flip = True
    config.augment.vertical_flip = True
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.2
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 200
    config.optim.weight_decay = 1e-3
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.998
    return config
