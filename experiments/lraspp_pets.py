"""LR-ASPP on MobileNetV3-Large (Howard et al. 2019) on the trimaps of the Oxford pets: background,
cat, dog. No result has been measured yet.

    python -m jaxseg.main --config=experiments/lraspp_pets.py --workdir=RUN \\
        --config.data.source=oxford-iiit-pet --config.init_from=mobilenet_v3_large.pth

and `--config=experiments/lraspp_pets.py:cpu` for small pictures of the three breeds at hand, from
scratch.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "cpu"):
        raise ValueError(f'variant {variant!r}, expected "full" or "cpu"')
    cpu = variant == "cpu"
    config = jaxseg_config.default()
    config.steps = 1500 if cpu else 20_000
    config.eval_every = config.checkpoint_every = 500 if cpu else 2000
    config.model.update(name="lraspp", losses=("cross_entropy", "dice"))
    config.data.name = "pets"
    config.data.options.update(classes="species", border="ignore", val_every=5)
    config.data.image_size = (128, 128) if cpu else (320, 320)
    config.data.crop_size = (128, 128) if cpu else (320, 320)
    config.data.batch_size = config.data.eval_batch_size = 16
    config.data.num_workers = 0 if cpu else 8
    config.augment.scales = (0.75, 1.5)
    config.augment.flip = True
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.3
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 1e-2
    config.optim.clip_norm = 5.0
    config.optim.ema_decay = 0.99
    return config
