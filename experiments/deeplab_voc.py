"""DeepLab v3+ (Chen et al. 2018) on VOC 2012: no result has been measured yet.

    python -m jaxseg.main --config=experiments/deeplab_voc.py --workdir=RUN \\
        --config.data.source=VOCdevkit --config.init_from=resnet101.pth

and `--config=experiments/deeplab_voc.py:cpu` for a narrow ResNet-50 on small crops, from scratch.

The paper's schedule: SGD, the poly schedule of power 0.9 from 0.007, crops of 513×513 at scales 0.5
to 2, batch norm trained, output stride 16 (sections 4 and 4.1 of the DeepLab v3 paper).
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "cpu"):
        raise ValueError(f'variant {variant!r}, expected "full" or "cpu"')
    cpu = variant == "cpu"
    config = jaxseg_config.default()
    config.steps = 200 if cpu else 30_000
    config.eval_every = config.checkpoint_every = 100 if cpu else 3000
    config.model.update(name="deeplab", version="v3+", backbone="resnet50" if cpu else "resnet101")
    if cpu:
        config.model.update(width=16, head_width=64)
    config.data.name = "voc"
    config.data.image_size = (512, 512)
    config.data.crop_size = (161, 161) if cpu else (513, 513)
    config.data.batch_size = config.data.eval_batch_size = 4 if cpu else 16
    config.data.num_workers = 0 if cpu else 8
    config.augment.scales = (0.5, 2.0)
    config.augment.flip = True
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.007
    config.optim.schedule = "poly"
    config.optim.power = 0.9
    config.optim.weight_decay = 4e-5
    return config
