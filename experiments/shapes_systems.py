"""Every detector of one stage on the generated `shapes`, from scratch and with no files needed.

    python -m jaxseg.main --config=experiments/shapes_systems.py:yolox,cpu --workdir=RUN   # 96×96
    python -m jaxseg.main --config=experiments/shapes_systems.py:yolox --workdir=RUN       # 256×256
    python benchmarks/systems.py --config=experiments/shapes_systems.py --workdir=RUNS   # the table

`cpu`: narrow networks, minutes on a laptop; `full`: published widths, for an accelerator. Objects
are a quarter to two thirds of a picture long. Of all systems the pictures and their order, the
optimiser and the number of steps are the same. AP50 of `cpu`: YOLOX 0.955, FCOS 0.897, RetinaNet
0.810, YOLO v1 0.807, SSD 0.721, YOLOv3-tiny 0.610 (RESULTS.md).
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config

VARIANTS = ("full", "cpu")
SMALL = dict(backbone="resnet18", width=16, features=32, convolutions=2)

# By k-means on training boxes (`models.yolov3.kmeans_anchors`), in pixels at 96×96.
SIX = (28, 27), (32, 33), (40, 35), (35, 43), (45, 43), (48, 52)

# name: (the model of the `full` variant, what `cpu` changes of it)
SYSTEMS = {
    # Cells of a sixth (`cpu`) or an eighth of a side; dense layers would have to learn each of them
    # anew.
    "yolo": (
        dict(name="yolo", backbone="fast_yolo", stride=32, dense=()),
        dict(stride=16, width=8),
    ),
    "yolov3_tiny": (dict(name="yolov3", tiny=True), dict(width=8)),
    "yolox": (dict(name="yolox", size="s"), dict(width=0.25)),
    "ssd": (
        dict(name="ssd", variant="resnet", backbone="resnet50"),
        dict(backbone="resnet18", width=16),
    ),
    "retinanet": (dict(name="retinanet", head_norm="group"), SMALL),
    "fcos": (dict(name="fcos"), SMALL),
}


def settings_of(system: str, side: int) -> dict:
    """What suits the shapes in pictures of side × side pixels."""
    octaves = tuple(tuple(side * n * 2**i // 48 for n in (8, 10, 12)) for i in range(5))
    return {
        "yolov3_tiny": dict(anchors=tuple((side * w / 96, side * h / 96) for w, h in SIX)),
        "ssd": dict(scales=(0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)),
        "retinanet": dict(anchor_sizes=octaves),
    }.get(system, {}) | dict(min_score=0.05, detections=20)


def get_config(argument: str = "yolox,full") -> ConfigDict:
    """argument: SYSTEM or SYSTEM,VARIANT."""
    system, _, variant = argument.partition(",")
    variant = variant or "full"
    if system not in SYSTEMS or variant not in VARIANTS:
        names = ", ".join(SYSTEMS)
        raise ValueError(f'{argument!r}, expected SYSTEM,VARIANT of {names} and "full" or "cpu"')
    cpu = variant == "cpu"
    side = 96 if cpu else 256
    model, narrow = SYSTEMS[system]
    config = jaxseg_config.default()
    config.task = "detection"
    config.best_metric = "AP"
    config.steps = 1500 if cpu else 10_000
    config.eval_every = 500 if cpu else 2000
    config.checkpoint_every = 250
    config.parallel = "pmap"
    config.dtype = "float32" if cpu else "bfloat16"
    config.model.update(model | (narrow if cpu else {}), norm="batch")
    config.model.update(settings=settings_of(system, side))
    config.data.name = "shapes"
    config.data.options.image_size = (side, side)
    config.data.image_size = config.data.crop_size = (side, side)
    config.data.batch_size = 16
    config.data.eval_batch_size = 40
    config.data.max_objects = 4
    config.data.masks = False
    config.augment.flip = True
    config.optim.learning_rate = 3e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 1e-3
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.998
    return config
