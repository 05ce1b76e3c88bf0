"""All settings of an experiment, with their defaults. An experiment file takes `default()` and
changes what it wants; a name that is not here is refused, except under `model`, `data.options` and
`crf`, which refuses it later.
"""

from typing import Literal

from ml_collections import ConfigDict


def default() -> ConfigDict:
    """The settings, locked against misspelt names. Time is in steps, rates are absolute."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 1000
    config.task = "semantic"  # jaxseg/tasks/NAME.py
    config.dtype = "float32"  # of the network's arithmetic; params are float32
    config.parallel = "jit"  # or "pmap"
    # Weights to start from: a run's workdir, a torchvision .pth, .safetensors, Darknet's .weights
    config.init_from = ""
    config.init_part = ""  # regular expression on paths, as "/backbone/": take no others
    config.init_adapt_input = False  # change the first convolution for other than 3 channels
    config.stages = ()  # dicts of changes, each a training that starts from the one before

    config.eval_every = 0  # 0: at the end only
    config.checkpoint_every = 0
    config.log_every = 20
    config.keep_checkpoints = 2  # the last ones; the best is kept besides
    config.best_metric = "mean_iu"
    config.max_skipped_steps = 0  # non-finite steps to skip before giving up

    # name: jaxseg/models/NAME.py, or the dotted path of a module with `build`; the rest goes to
    # `build`. class_weights="median_frequency" stands for those of the training split.
    config.model = ConfigDict({"name": "unet"})

    config.data = ConfigDict()
    config.data.name = "shapes"  # jaxseg/data/builders/NAME.py, or a module with `open_source`
    config.data.source = ""  # folder or archive; "": $JAXSEG_DATA/NAME
    config.data.options = ConfigDict()  # of the format's `open_source`
    config.data.cache = ""  # where prepared sets are kept; "": $JAXSEG_CACHE or ~/.cache/jaxseg
    config.data.on_error = "raise"  # or "skip": leave bad examples out and count them
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.limit = 0  # use no more than the first so many examples of each split; 0: all
    config.data.image_size = (256, 256)  # canvas of whole images: larger ones are shrunk to fit
    config.data.crop_size = (256, 256)  # canvas of training's random crops
    # (shorter, longer) side in pixels: images are enlarged or shrunk until one of both has it and
    # the other not more, as (800, 1333). They lie at the canvas' top left. (): only shrunk to fit.
    config.data.resize = ()
    config.data.stretch = False  # images fill image_size, whatever their aspect ratio, as SSD's do
    # Canvases instead of both above, as ((800, 1344), (1344, 800)): each image goes where the least
    # padding is, each batch has one of them, and as many programs are compiled.
    config.data.buckets = ()
    config.data.batch_size = 8  # of all devices and processes together
    config.data.eval_batch_size = 8
    config.data.num_workers = 0  # processes that prepare batches; 0: threads
    config.data.max_objects = 0  # rows for objects in a training batch; 0: no objects
    config.data.masks = True  # of those objects, where the set has them
    config.data.border_weights = ()  # (w0, sigma) of U-Net's border weight map; (): none

    config.augment = ConfigDict()
    # Times the scale at which the image fits into image_size, or that of data.resize;
    # large-scale jitter is (0.1, 2.0).
    config.augment.scales = (1.0, 1.0)
    config.augment.min_sizes = ()  # shorter sides to draw from, instead of data.resize's; (): none
    # Least IoUs of SSD's random parts with an object, as (0.1, 0.3, 0.5, 0.7, 0.9, 1.0): one is
    # drawn, 1 is the whole image; (): none
    config.augment.crop_overlaps = ()
    config.augment.expand = 1.0  # make the image up to so many times smaller, half of the time
    config.augment.flip = False
    config.augment.vertical_flip = False
    config.augment.rotate = False  # by 0, 90, 180 or 270 degrees
    config.augment.mosaic = 0.0  # probability of four images on a canvas
    config.augment.copy_paste = 0.0  # probability of objects of another image; needs masks
    config.augment.mixup = 0.0  # probability of another image blended with it
    config.augment.min_visible = 0.0  # drop objects of which less than this share is left
    config.augment.elastic = ()  # (grid points a side, deviation in pixels), as (3, 10.0); (): none
    config.augment.brightness = 0.0
    config.augment.contrast = 0.0
    config.augment.saturation = 0.0
    config.augment.hue = 0.0
    config.augment.color_probability = 1.0  # of each of these four; below 1 in SSD's random order
    config.augment.channel_shuffle = 0.0  # probability of red, green and blue exchanged

    # The dense CRF behind evaluation and prediction: arguments of jaxseg.crf.dense.dense_crf, as
    # {"bilateral_sigma": 60.0}; none: no CRF. One that is trained is config.model.crf_rnn.
    config.crf = ConfigDict()

    config.optim = ConfigDict()  # see jaxseg/train/optim.py
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "poly"
    config.optim.warmup_steps = 0
    config.optim.power = 0.9
    config.optim.milestones = ()
    config.optim.gamma = 0.1
    config.optim.momentum = 0.9
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 0.0  # 0: none
    config.optim.multipliers = ConfigDict()  # {regular expression on paths: factor}, 0 freezes
    config.optim.accumulate = 1  # pieces into which a batch is cut
    config.optim.ema_decay = 0.0  # of the weights' moving average; 0: none

    config.lock()
    for free in (config.model, config.data.options, config.crf, config.optim.multipliers):
        free.unlock()
    return config


def resize_of(data: ConfigDict) -> tuple[int, int] | tuple[()] | Literal["stretch"]:
    """How `config.data` has pictures resized: see `data.transforms`."""
    if data.get("stretch", False):  # older runs have neither
        return "stretch"
    return tuple(data.get("resize") or ())
