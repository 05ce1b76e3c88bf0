"""U-Net on a folder of your own, `images/` and `masks/` (see jaxseg/data/builders/folder.py).

    python -m jaxseg.main --config=experiments/unet_folder.py --workdir=RUN \\
        --config.data.source=FOLDER

Set `data.image_size` to a size into which your pictures fit, or larger ones are shrunk; and, where
the folder has one split only, `data.eval_split=train`, knowing that its scores then say little.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config() -> ConfigDict:
    config = jaxseg_config.default()
    config.steps = 4000
    config.eval_every = config.checkpoint_every = 500
    config.model.update(
        name="unet",
        width=32,
        padding="same",
        norm="batch",
        losses=("cross_entropy", "dice"),
    )
    config.data.name = "folder"
    config.data.image_size = (512, 512)
    config.augment.scales = (0.75, 1.5)
    config.augment.flip = True
    config.augment.brightness = config.augment.contrast = 0.2
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 1e-3
    config.optim.clip_norm = 5.0
    return config
