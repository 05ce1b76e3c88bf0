"""U-Net (Ronneberger et al. 2015) on the ISBI 2012 membranes, from scratch: 24 labelled slices, of
which the last 6 are held back.

    python -m jaxseg.main --config=experiments/unet_isbi.py --workdir=RUN \\
        --config.data.source=FOLDER

and `--config=experiments/unet_isbi.py:cpu` for a narrow network: pixel error 0.078 (1 − F: 0.049),
Rand error 0.157 (1 − V_rand: 0.088) on the 6 slices, 11 minutes on 2 cores of a CPU, 21 November
2026. `full` has not been run yet.

The paper's own details: unpadded convolutions on pictures continued by mirroring, elastic
deformation, dropout at the end of the contracting path, momentum 0.99, one picture a step. Scored
by pixel error and by the challenge's Rand error.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "cpu"):
        raise ValueError(f'variant {variant!r}, expected "full" or "cpu"')
    cpu = variant == "cpu"
    config = jaxseg_config.default()
    config.task = "membrane"
    config.best_metric = "mean_iu"
    config.steps = 800 if cpu else 20_000
    config.eval_every = config.checkpoint_every = 200 if cpu else 1000
    config.model.update(
        name="unet",
        width=16 if cpu else 64,
        padding="same" if cpu else "valid",
        norm="batch" if cpu else "none",
        dropout=0.5,
        class_weights="median_frequency" if not cpu else None,
    )
    config.data.name = "isbi"
    config.data.image_size = (512, 512)
    config.data.crop_size = (256, 256) if cpu else (388, 388)
    config.data.batch_size = 4 if cpu else 1
    config.data.eval_batch_size = 1
    config.augment.scales = (0.9, 1.1)
    config.augment.flip = True
    config.augment.elastic = (3, 10.0)
    config.augment.brightness = config.augment.contrast = 0.2
    if cpu:
        config.optim.name = "adamw"
        config.optim.learning_rate = 2e-3
        config.optim.schedule = "cosine"
        config.optim.warmup_steps = 50
        config.optim.ema_decay = 0.99
    else:
        config.optim.name = "sgd"
        config.optim.learning_rate = 1e-3
        config.optim.momentum = 0.99
        config.optim.schedule = "poly"
        config.optim.clip_norm = 1.0
    return config
