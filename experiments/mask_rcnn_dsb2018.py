"""Mask R-CNN (He et al. 2017) on the nuclei of the Data Science Bowl 2018, from scratch: 224
training images, 56 for validation, 8,425 nuclei.

    python -m jaxseg.main --config=experiments/mask_rcnn_dsb2018.py --workdir=RUN \\
        --config.data.source=FOLDER                                        # 512×512, enlarged
    python -m jaxseg.main --config=experiments/mask_rcnn_dsb2018.py:cpu --workdir=RUN \\
        --config.data.source=FOLDER                                        # 256×256

Measured, `cpu`: mask AP50 0.796, mask AP 0.490 on the validation split, in 20 minutes on 2 CPU
cores.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "cpu"):
        raise ValueError(f'variant {variant!r}, expected "full" or "cpu"')
    cpu = variant == "cpu"
    config = jaxseg_config.default()
    config.task = "detection"
    config.best_metric = "mask_AP50"
    config.steps = 800 if cpu else 12_000
    config.eval_every = 400 if cpu else 2000
    config.checkpoint_every = 200
    config.parallel = "pmap"
    config.dtype = "float32" if cpu else "bfloat16"
    unit = 1 if cpu else 2
    sizes = (8, 12), (16, 24), (32, 48), (64, 96), (128, 192)
    config.model.update(
        name="mask_rcnn",
        backbone="resnet18" if cpu else "resnet50",
        width=32 if cpu else 64,
        features=64 if cpu else 256,
        box_dense=(256, 256) if cpu else (1024, 1024),
        mask_features=64 if cpu else 256,
        mask_convolutions=3 if cpu else 4,
        aligned=True,
        norm="batch",
        neck_norm="batch",
        settings=dict(
            anchor_sizes=tuple((unit * a, unit * b) for a, b in sizes),
            aspect_ratios=(0.7, 1.0, 1.4),
            rpn_iou=(0.6, 0.3),
            proposals_per_level=(400, 400),
            proposals=(400, 400),
            region_samples=96,
            region_positive_fraction=0.5,
            detections=150 if cpu else 400,
        ),
    )
    config.data.name = "dsb2018"
    config.data.image_size = (256, 256) if cpu else (512, 512)
    config.data.crop_size = config.data.image_size
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.data.max_objects = 128 if cpu else 384  # more than any picture here shows
    config.augment.scales = (0.7, 1.5)
    config.augment.min_visible = 0.2
    config.augment.flip = True
    config.augment.vertical_flip = True
    config.augment.rotate = True
    config.augment.brightness = config.augment.contrast = 0.3
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 200
    config.optim.weight_decay = 1e-3
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.998
    return config
