"""FCN on VGG16 (Long et al. 2015) on VOC 2012: no result has been measured yet.

    python -m jaxseg.main --config=experiments/fcn_voc.py:staged --workdir=RUN \\
        --config.data.source=VOCdevkit --config.init_from=vgg16.pth

staged    FCN-32s, then FCN-16s, then FCN-8s, each from the one before (section 4.2): the first two
          are in RUN/stage1 and RUN/stage2, the last in RUN
full      FCN-8s at once, with batch norm, from scratch
cpu       the same in miniature
cpu_staged    the stages in miniature

Staged, it is the paper's training: SGD with momentum 0.9 and weight decay 5e-4, a fixed learning
rate, twice that for biases, no augmentation, dropout. The paper's rates (1e-4, 1e-5 …) are for its
batches of 20 pictures with the mean loss over pixels.
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config

VARIANTS = ("full", "staged", "cpu", "cpu_staged")


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}, expected one of {', '.join(VARIANTS)}")
    cpu, staged = variant.startswith("cpu"), variant.endswith("staged")
    config = jaxseg_config.default()
    config.steps = 200 if cpu else 100_000
    config.eval_every = config.checkpoint_every = 100 if cpu else 4000
    config.model.update(name="fcn", stride=8, norm="batch" if cpu or not staged else "none")
    if cpu:
        config.model.update(width=8, head_width=64)
    config.data.name = "voc"
    config.data.image_size = (512, 512)
    config.data.crop_size = (160, 160) if cpu else (384, 384)
    config.data.batch_size = config.data.eval_batch_size = 4 if cpu else 16
    config.data.num_workers = 0 if cpu else 8
    config.optim.name = "sgd"
    config.optim.learning_rate = 1e-2
    config.optim.weight_decay = 5e-4
    config.optim.clip_norm = 5.0
    if not staged:
        config.augment.scales = (0.5, 1.5)
        config.augment.flip = True
        config.optim.warmup_steps = 20 if cpu else 1000
        return config
    config.optim.schedule = "constant"
    config.optim.multipliers["bias$"] = 2.0
    if not cpu:
        config.data.crop_size = (512, 512)
        config.data.batch_size = 20
        config.optim.learning_rate = 1e-3
    config.stages = (
        {"model.stride": 32},
        {"model.stride": 16, "optim.learning_rate": config.optim.learning_rate / 10},
        {"model.stride": 8, "optim.learning_rate": config.optim.learning_rate / 100},
    )
    return config
