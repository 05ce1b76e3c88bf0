"""U-Net on CamVid.

python -m jaxseg.main --config=experiments/unet_camvid.py:cpu --workdir=RUN
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "cpu"):
        raise ValueError(f'variant {variant!r}, expected "full" or "cpu"')
    cpu = variant == "cpu"
    config = jaxseg_config.default()
    config.steps = 4000 if cpu else 20_000
    config.eval_every = 500
    config.checkpoint_every = 250
    config.model.update(
        name="unet",
        width=16 if cpu else 64,
        padding="same",
        use_batch_norm=True,
        dropout=0.0,
        class_weights="median_frequency",
    )
    config.data.name = "camvid"
    config.data.image_size = (180, 240) if cpu else (360, 480)
    config.data.crop_size = (160, 208) if cpu else (360, 480)
    config.data.batch_size = 6 if cpu else 8
    config.data.eval_batch_size = 8
    config.augment.scales = (0.75, 2.0)
    config.augment.flip = True
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.3
    config.optim.learning_rate = 3e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 1e-3
    config.optim.ema_decay = 0.99
    return config
