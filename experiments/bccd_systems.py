"""Every kind of detector on BCCD in the same way, to be compared: 292 training images, 72 test
images, three classes of blood cells, from scratch.

    python -m jaxseg.main --config=experiments/bccd_systems.py:yolox,cpu --workdir=RUN \\
        --config.data.source=FOLDER
    python benchmarks/systems.py --config=experiments/bccd_systems.py --workdir=RUNS \\
        --config.data.source=FOLDER                                            # the table

`cpu`: pictures of 240×320, narrow networks; `full`: 480×640, published widths; for SSD300 they are
stretched to 300×300. All have batch norm, the same images in the same order, the same optimiser and
number of steps, and start from nothing: so this compares detectors, not what their authors reached.
`retinanet_cross_entropy` is RetinaNet without what makes the loss a focal one (γ = 0).
"""

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config

VARIANTS = ("full", "cpu")

# By k-means on the training boxes (`models.yolov3.kmeans_anchors`), in pixels at 240×320.
SIX = (20, 19), (45, 40), (47, 54), (56, 47), (61, 58), (108, 98)
SMALL = dict(backbone="resnet18", width=32, features=64)

# name: (the model of the `full` variant, what `cpu` changes of it)
_RETINANET = (
    dict(name="retinanet", backbone="resnet50", head_norm="group"),
    dict(SMALL, convolutions=2),
)
SYSTEMS = {
    # Cells of 32 pixels at 240×320, and a convolution as the last layer: of a dense one, most
    # parameters would have to be learned from 292 pictures.
    "yolo": (dict(name="yolo", dense=()), dict(backbone="fast_yolo", stride=32)),
    "yolov3_tiny": (dict(name="yolov3", tiny=True), {}),
    "yolox": (dict(name="yolox", size="s"), dict(width=0.25)),
    "ssd300": (dict(name="ssd", variant="ssd300", colours=None), dict(width=16)),
    "fcos": (
        dict(name="fcos", backbone="resnet50", head_norm="group"),
        dict(SMALL, convolutions=2),
    ),
    "retinanet": _RETINANET,
    "retinanet_cross_entropy": _RETINANET,
    "faster_rcnn": (
        dict(name="faster_rcnn", backbone="resnet50", levels=(8, 16, 32), neck_norm="batch"),
        dict(SMALL, box_dense=(256, 256)),
    ),
}


def settings_of(system: str, unit: int) -> dict:
    """What suits platelets of 20 pixels, red cells of 50 and white ones of 100, times `unit`."""

    def scaled(sizes: tuple) -> tuple:
        return tuple(tuple(unit * side for side in pair) for pair in sizes)

    octaves = scaled(tuple((16 * 2**i, 20 * 2**i, 25 * 2**i) for i in range(5)))
    pairs = scaled(((16, 24), (40, 56), (80, 112), (160, 224)))
    return {
        "yolov3_tiny": dict(anchors=scaled(SIX)),
        "ssd300": dict(scales=(0.07, 0.15, 0.25, 0.37, 0.53, 0.7, 0.9)),
        "retinanet": dict(anchor_sizes=octaves, detections=100),
        "retinanet_cross_entropy": dict(
            anchor_sizes=octaves, detections=100, focal_gamma=0.0, focal_alpha=None
        ),
        "faster_rcnn": dict(
            anchor_sizes=pairs,
            aspect_ratios=(0.7, 1.0, 1.4),
            rpn_samples=128,
            proposals_per_level=(300, 300),
            proposals=(300, 300),
            region_samples=96,
        ),
    }.get(system, {})


def get_config(argument: str = "yolox,full") -> ConfigDict:
    """argument: SYSTEM or SYSTEM,VARIANT."""
    system, _, variant = argument.partition(",")
    variant = variant or "full"
    if system not in SYSTEMS or variant not in VARIANTS:
        names = ", ".join(SYSTEMS)
        raise ValueError(f'{argument!r}, expected SYSTEM,VARIANT of {names} and "full" or "cpu"')
    cpu = variant == "cpu"
    model, narrow = SYSTEMS[system]
    config = jaxseg_config.default()
    config.task = "detection"
    config.best_metric = "AP50"
    config.steps = 1500 if cpu else 12_000
    config.eval_every = 0 if cpu else 2000
    config.checkpoint_every = 250
    config.parallel = "pmap"
    config.dtype = "float32" if cpu else "bfloat16"
    config.model.update(model | (narrow if cpu else {}), norm="batch")
    if settings := settings_of(system, 1 if cpu else 2):
        config.model.update(settings=settings)
    config.data.name = "bccd"
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    if system == "ssd300":
        config.data.stretch, canvas = True, (300, 300)
    else:  # multiples of 32, the coarsest stride of a backbone
        config.data.resize = (240, 320) if cpu else (480, 640)
        canvas = (256, 320) if cpu else (512, 640)
    config.data.image_size = config.data.crop_size = canvas
    config.data.batch_size = config.data.eval_batch_size = 8
    config.data.max_objects = 64
    config.augment.scales = (0.8, 1.4)
    config.augment.min_visible = 0.3
    config.augment.flip = config.augment.vertical_flip = True
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.2
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 200
    config.optim.weight_decay = 1e-3
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.998
    return config
