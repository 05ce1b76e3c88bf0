"""Every semantic system on CamVid in the same way, to be compared: 367 training images, 11 classes.

    python -m jaxseg.main --config=experiments/camvid_systems.py:fcn8s,cpu --workdir=RUN
    python benchmarks/systems.py --config=experiments/camvid_systems.py --workdir=RUNS  # the table

`cpu`: 180×240, narrow networks; `full`: 360×480, the papers' widths. All have batch norm, the same
images in the same order, the same losses, optimiser and number of steps, and start from nothing: so
this compares architectures, not what their authors reached. The measured table is in RESULTS.md.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config

# name: (the model of the `full` variant, what `cpu` changes of it)
_FCN = dict(name="fcn", backbone="vgg16"), dict(width=16, head_width=128, padding=1, head_padding=3)
_DEEPLAB = dict(name="deeplab", backbone="resnet50"), dict(backbone="resnet18", width=32)
SYSTEMS = {
    "unet": (dict(name="unet", padding="same"), dict(width=12)),
    "fcn32s": (_FCN[0] | dict(stride=32), _FCN[1]),
    "fcn16s": (_FCN[0] | dict(stride=16), _FCN[1]),
    "fcn8s": (_FCN[0] | dict(stride=8), _FCN[1]),
    # Its fc6 over the whole picture has one place in it, and batch norm 8 values a batch: too few.
    "deconvnet": (dict(name="deconvnet"), dict(width=12, head_width=128, window=3)),
    "deeplab_v1": (
        dict(name="deeplab", version="v1"),
        dict(width=16, head_width=128),
    ),
    # The same parameters, strided where v1 is atrous.
    "deeplab_v1_strided": (
        dict(name="deeplab", version="v1", output_stride=32),
        dict(width=16, head_width=128),
    ),
    "deeplab_v2": (_DEEPLAB[0] | dict(version="v2"), _DEEPLAB[1]),
    "deeplab_v3": (
        _DEEPLAB[0] | dict(version="v3"),
        _DEEPLAB[1] | dict(head_width=64, multi_grid=(1, 2)),
    ),
    "deeplab_v3plus": (
        _DEEPLAB[0] | dict(version="v3+"),
        _DEEPLAB[1] | dict(head_width=64, low_level_width=16),
    ),
    "hourglass": (dict(name="hourglass", num_stacks=2), dict(width=64)),
    "lraspp": (dict(name="lraspp"), {}),
}


def get_config(argument: str = "fcn8s,full") -> ConfigDict:
    """argument: SYSTEM or SYSTEM,VARIANT."""
    system, _, variant = argument.partition(",")
    variant = variant or "full"
    if system not in SYSTEMS or variant not in ("full", "cpu"):
        names = ", ".join(SYSTEMS)
        raise ValueError(f'{argument!r}, expected SYSTEM,VARIANT of {names} and "full" or "cpu"')
    cpu = variant == "cpu"
    model, narrow = SYSTEMS[system]
    config = jaxseg_config.default()
    config.steps = 800 if cpu else 12_000
    config.eval_every = 0 if cpu else 1000
    config.checkpoint_every = 200 if cpu else 1000
    config.dtype = "float32" if cpu else "bfloat16"
    config.model.update(model | (narrow if cpu else {}), norm="batch")
    config.model.update(losses=("cross_entropy", "dice"))
    config.data.name = "camvid"
    config.data.image_size = (180, 240) if cpu else (360, 480)
    config.data.crop_size = (160, 208) if cpu else (352, 480)
    config.data.batch_size = config.data.eval_batch_size = 8
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
