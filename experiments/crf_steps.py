"""What each conditional random field adds to one network: FCN-8s by itself, and with CRF-RNN behind
it, trained end to end from there.

    python benchmarks/crf_steps.py --config=experiments/crf_steps.py --workdir=RUNS  # the table

or, by hand,

    python -m jaxseg.main --config=experiments/crf_steps.py:camvid,unary,cpu --workdir=UNARY
    python -m jaxseg.main --config=experiments/crf_steps.py:camvid,crf_rnn,cpu --workdir=CRF_RNN \\
        --config.init_from=UNARY

`longer` goes on from UNARY for as many steps without the CRF. Pictures: `camvid` (streets, 11
classes, 180×240 in the `cpu` variant) and `pets` (photographs of cats and dogs, 160×160). The
measured tables are in RESULTS.md.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config

SYSTEMS = [
    f"{name},{part}" for name in ("camvid", "pets") for part in ("unary", "longer", "crf_rnn")
]


def get_config(argument: str = "camvid,unary,full") -> ConfigDict:
    """argument: SET,PART,VARIANT."""
    system, _, variant = argument.rpartition(",")
    if system not in SYSTEMS or variant not in ("full", "cpu"):
        raise ValueError(f'{argument!r}, expected "full" or "cpu" behind {"; ".join(SYSTEMS)}')
    name, part = system.split(",")
    cpu, first = variant == "cpu", part == "unary"
    config = jaxseg_config.default()
    if cpu:
        config.steps = 1000 if first else 200
    else:
        config.steps = 12_000 if first else 2000
    config.eval_every = 0 if cpu else 1000
    config.checkpoint_every = 200 if cpu else 1000
    config.model.update(name="fcn", backbone="vgg16", stride=8, norm="batch")
    config.model.update(losses=("cross_entropy", "dice"))
    if cpu:
        config.model.update(width=16, head_width=128, padding=1, head_padding=3)
    if part == "crf_rnn":
        # What `tune_crf` searches is where training starts; the paper's bandwidths are 160/3.
        config.model.crf_rnn = dict(
            spatial_sigma=3.0,
            spatial_weight=1.0,
            bilateral_sigma=40.0,
            colour_sigma=8.0,
            bilateral_weight=3.0,
            normalization="symmetric",
        )
        config.optim.multipliers = {"^crf/": 10.0}
    config.data.name = name
    if name == "camvid":
        config.data.image_size = (180, 240) if cpu else (360, 480)
        config.data.crop_size = (160, 208) if cpu else (352, 480)
    else:
        config.data.options.update(classes="species", border="ignore", val_every=5)
        config.data.image_size = config.data.crop_size = (160, 160) if cpu else (320, 320)
    config.data.batch_size = config.data.eval_batch_size = 8
    config.data.num_workers = 0 if cpu else 4
    config.augment.scales = (0.75, 1.5)
    config.augment.flip = True
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.3
    config.optim.learning_rate = 3e-3 if first else 3e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100 if first else 20
    config.optim.weight_decay = 1e-3
    config.optim.clip_norm = 5.0
    config.optim.ema_decay = (0.99 if cpu else 0.998) if first else 0.95
    return config
