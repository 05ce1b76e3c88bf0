"""FCN-8s (Long et al. 2015) on VOC 2012, from scratch: no result has been measured yet.

    python -m jaxseg.main --config=experiments/fcn_voc.py --workdir=RUN \\
        --config.data.source=VOCdevkit

and `--config=experiments/fcn_voc.py:cpu` for a miniature of it.

The paper starts from VGG16's ImageNet weights, with SGD, momentum 0.9, a fixed learning rate and no
augmentation, one image a step.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "cpu"):
        raise ValueError(f'variant {variant!r}, expected "full" or "cpu"')
    cpu = variant == "cpu"
    config = jaxseg_config.default()
    config.steps = 200 if cpu else 100_000
    config.eval_every = config.checkpoint_every = 100 if cpu else 4000
    config.model.update(
        name="fcn",
        stride=8,
        width=8 if cpu else 64,
        head_width=64 if cpu else 4096,
        use_batch_norm=True,
    )
    config.data.name = "voc"
    config.data.image_size = (512, 512)
    config.data.crop_size = (160, 160) if cpu else (384, 384)
    config.data.batch_size = config.data.eval_batch_size = 4 if cpu else 16
    config.data.num_workers = 0 if cpu else 8
    config.augment.scales = (0.5, 1.5)
    config.augment.flip = True
    config.optim.name = "sgd"
    config.optim.learning_rate = 1e-2
    config.optim.warmup_steps = 20 if cpu else 1000
    config.optim.weight_decay = 5e-4
    config.optim.clip_norm = 5.0
    return config
