"""U-Net (Ronneberger et al. 2015) on CamVid, from scratch: 367 training images, 11 classes.

python -m jaxseg.main --config=experiments/unet_camvid.py --workdir=RUN        # 360×480
python -m jaxseg.main --config=experiments/unet_camvid.py:cpu --workdir=RUN    # 180×240

Measured, `cpu`: mean IU 0.600 over the 11 classes on the official validation split, at 180×240 (the
best of five evaluations 0.604), in 28 minutes on 2 CPU cores. The full size awaits a GPU; its
published scores on this split are about 0.72.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "cpu"):
        raise ValueError(f'variant {variant!r}, expected "full" or "cpu"')
    cpu = variant == "cpu"
    config = jaxseg_config.default()
    config.steps = 2500 if cpu else 12_000
    config.eval_every = 500
    config.checkpoint_every = 250
    config.dtype = "float32" if cpu else "bfloat16"
    config.model.update(
        name="unet",
        width=16 if cpu else 64,
        padding="same",
        norm="batch",
        dropout=0.0 if cpu else 0.5,
        losses=("cross_entropy", "dice"),
    )
    config.data.name = "camvid"
    config.data.image_size = (180, 240) if cpu else (360, 480)
    config.data.crop_size = (160, 208) if cpu else (352, 480)
    config.data.batch_size = 8
    config.data.num_workers = 0 if cpu else 4
    config.augment.scales = (0.75, 1.5)
    config.augment.flip = True
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.3
    config.optim.learning_rate = 3e-3 if cpu else 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 1e-3
    config.optim.clip_norm = 5.0
    config.optim.ema_decay = 0.99 if cpu else 0.998
    return config
