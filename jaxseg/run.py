"""What the four entry points share: from a config to data, model and task, and a run's folder.

A run's folder holds `config.json`, `dataset.json` (what predictions need to know of the data), and
what training leaves: `metrics.jsonl`, `scores.json`, `scores.txt`, `checkpoints/`, `pictures/`,
`tensorboard/`.
"""

import difflib
import importlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxseg.config import resize_of
from jaxseg.crf.dense import settings_of
from jaxseg.data import pipeline, transforms
from jaxseg.data.builders.prepare import Dataset, prepare
from jaxseg.models import yolov3
from jaxseg.ops.losses import median_frequency_weights
from jaxseg.train.checkpoint import load_variables
from jaxseg.train.evaluate import make_evaluate
from jaxseg.train.log import write_whole
from jaxseg.train.loop import Scored
from jaxseg.train.mesh import data_mesh
from jaxseg.types import Batch, Model, Precision, Task, Variables
from jaxseg.viz import draw
from jaxseg.weights.convert import flatten, from_torchvision
from jaxseg.weights.darknet import read_cfg, read_darknet, yolov3_options
from jaxseg.weights.files import read_state_dict
from jaxseg.weights.merge import describe as describe_report
from jaxseg.weights.merge import merge


class Info(NamedTuple):
    """What a model and its predictions need to know of a dataset."""

    name: str
    classes: tuple[str, ...]
    palette: np.ndarray  # uint8 [K 3]
    class_weights: tuple[float, ...]  # median-frequency balancing of the training split
    keypoint_names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints that a line joins


class Run(NamedTuple):
    """A run, opened to be used."""

    config: ConfigDict
    info: Info
    model: Model
    variables: Variables
    step: int


# ---- from a config ----


def check_config(config: ConfigDict) -> None:
    """Raise ValueError, naming the field and what was expected, for values that cannot be."""
    data, devices = config.data, jax.device_count()
    for field in ("batch_size", "eval_batch_size"):
        shared = data[field] > 0 and data[field] % devices == 0
        _expect(shared, f"data.{field}", data[field], f"a multiple of the {devices} devices")
    pieces = config.optim.accumulate
    whole = pieces > 0 and data.batch_size % (pieces * devices) == 0
    _expect(whole, "optim.accumulate", pieces, "a divisor of each device's share of batch_size")
    _check_canvases(data)
    _check_augmentation(config)
    border = data.border_weights
    _expect(len(border) in (0, 2), "data.border_weights", border, "(w0, sigma), or ()")
    dtypes = ("float32", "bfloat16", "float16")
    _expect(config.dtype in dtypes, "dtype", config.dtype, f"one of {', '.join(dtypes)}")
    settings_of(dict(config.crf), "crf")
    _expect(config.steps >= 0, "steps", config.steps, "0 or more")
    _expect(config.log_every > 0, "log_every", config.log_every, "1 or more")


def _expect(holds: bool, field: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field} is {value}, expected {expected}")


def _check_canvases(data: ConfigDict) -> None:
    def is_size(value: Any) -> bool:
        return isinstance(value, tuple | list) and len(value) == 2 and min(value) > 0

    for field in ("image_size", "crop_size"):
        _expect(is_size(data[field]), f"data.{field}", data[field], "(height, width) in pixels")
    sides = len(data.resize) == 0 or (is_size(data.resize) and data.resize[0] <= data.resize[1])
    _expect(sides, "data.resize", data.resize, "(shorter, longer side) in pixels, or ()")
    alone = not (data.stretch and (len(data.resize) or len(data.buckets)))
    _expect(alone, "data.stretch", data.stretch, "False beside data.resize and data.buckets")
    canvases = all(is_size(size) for size in data.buckets)
    _expect(canvases, "data.buckets", data.buckets, "(height, width) pairs in pixels, or ()")


_MIXED = ("mosaic", "copy_paste", "mixup")  # fields of config.augment


def _check_augmentation(config: ConfigDict) -> None:
    data, augment = config.data, config.augment
    scales = augment.scales
    _expect(len(scales) == 2 and min(scales) > 0, "augment.scales", scales, "(lowest, highest)")
    sides = augment.min_sizes
    drawn = len(sides) == 0 or (len(data.resize) == 2 and min(sides) > 0)
    _expect(drawn, "augment.min_sizes", sides, "shorter sides in pixels beside data.resize")
    overlaps = augment.crop_overlaps
    shares = all(0 <= overlap <= 1 for overlap in overlaps)
    _expect(shares, "augment.crop_overlaps", overlaps, "IoUs from 0 to 1, or ()")
    _expect(augment.expand >= 1, "augment.expand", augment.expand, "a factor of 1 or more")
    for field in (*_MIXED, "min_visible", "color_probability", "channel_shuffle"):
        _expect(0 <= augment[field] <= 1, f"augment.{field}", augment[field], "0 to 1")
    room = data.max_objects > 0 or not (augment.copy_paste or augment.mixup or overlaps)
    _expect(room, "data.max_objects", 0, "more with augment.copy_paste, mixup or crop_overlaps")
    elastic = augment.elastic
    grid = len(elastic) == 0 or (len(elastic) == 2 and elastic[0] >= 2 and elastic[1] >= 0)
    _expect(grid, "augment.elastic", elastic, "(grid points, deviation in pixels), or ()")


def find_module(kind: str, name: str) -> ModuleType:
    """jaxseg/KINDs/NAME.py, or the module of a dotted name; ValueError where there is none."""
    path = name if "." in name else f"jaxseg.{kind}s.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise  # it is there, and lacks something else
        raise ValueError(f"{kind} {name!r}: no module {path}") from error


def prepare_data(config: ConfigDict) -> Dataset:
    """The dataset of a config; with several processes the first prepares it."""
    data = config.data
    load = partial(
        prepare,
        data.name,
        data.source or None,
        cache=data.cache or None,
        on_error=data.on_error,
        **data.options.to_dict(),
    )
    together, first = jax.process_count() > 1, jax.process_index() == 0
    if together and not first:
        multihost_utils.sync_global_devices("the first process has prepared the data")
    dataset = load()
    if together and first:
        multihost_utils.sync_global_devices("the first process has prepared the data")
    for field, split in (("train_split", data.train_split), ("eval_split", data.eval_split)):
        if split not in dataset.splits:
            raise ValueError(f"data.{field} is {split!r}; {data.name} has {sorted(dataset.splits)}")
    limit = data.get("limit", 0)  # older runs have none
    return dataset.first(limit) if limit else dataset


def describe(dataset: Dataset, train_split: str) -> Info:
    """The `Info` of a prepared dataset."""
    weights = median_frequency_weights(dataset.pixel_counts[train_split])
    return Info(
        dataset.name,
        tuple(dataset.classes),
        dataset.palette,
        tuple(weights.tolist()),
        tuple(dataset.keypoint_names),
        tuple(dataset.skeleton),
    )


def build_model(config: ConfigDict, info: Info, axis_name: str | None = None) -> Model:
    """The model of a config. axis_name: the `pmap` axis, across which batch norms agree."""
    options = _plain(config.model)
    name = options.pop("name")
    module = find_module("model", name)
    if options.get("class_weights") == "median_frequency":
        options["class_weights"] = info.class_weights
    precision = Precision(compute=jnp.dtype(config.dtype))
    settings = dict(precision=precision, axis_name=axis_name, **options)
    try:
        return module.build(len(info.classes), **settings)
    except TypeError as error:
        raise ValueError(f"config.model, of {name}: {error}") from error


def build_task(config: ConfigDict, dataset: Dataset, split: str) -> Task:
    """The task of a config, on a split."""
    return find_module("task", config.task).make_task(dataset, split)


def is_detection(config: ConfigDict) -> bool:
    """Whether its predictions are objects: whether its task is `detection`, or `detection_…`."""
    return config.task.split(".")[-1].split("_")[0] == "detection"


def take_weights(
    variables: Variables, config: ConfigDict, num_classes: int
) -> tuple[Variables, str]:
    """A network's fresh variables with what `config.init` names in their place, and a report.

    init_from: the workdir of a run (its best checkpoint), a torchvision state dict, .pth or
    .safetensors, or Darknet's NAME.weights, which has NAME.cfg beside it. See `weights.merge` for
    what fits; ValueError where it does not.
    """
    source, left_over = Path(config.init_from), []
    if source.suffix == ".weights" and not config.init_part:
        _check_anchors(source.with_suffix(".cfg"), config, num_classes)
    if source.is_dir():
        loaded, _ = load_variables(source / "checkpoints")
        told = f"from {source}"
    else:
        read = read_darknet if source.suffix == ".weights" else read_state_dict
        loaded, left_over, family = from_torchvision(read(source), str(source))
        told = f"from {source}, a {family}"
    if config.init_part:
        flat = flatten(loaded)
        chosen = {path: x for path, x in flat.items() if re.search(config.init_part, path)}
        if not chosen:
            raise ValueError(
                f"init_part: {config.init_part!r} is found in no path of {source}, such as "
                + ", ".join(list(flat)[:3])
            )
        loaded = unflatten_dict(chosen, sep="/")
    variables, report = merge(
        variables,
        loaded,
        num_classes=num_classes,
        adapt_input=config.init_adapt_input,
        name_of_file=str(source),
    )
    report = report._replace(left_over=[*report.left_over, *left_over])
    return variables, f"{told}\n{describe_report(report)}"


def _check_anchors(cfg: Path, config: ConfigDict, num_classes: int) -> None:
    """ValueError where a Darknet network for as many classes has other anchors than the config's:
    its arrays would load, and mean other boxes."""
    options = _plain(config.model)
    if find_module("model", options.pop("name")) is not yolov3:
        return
    theirs = yolov3_options(read_cfg(cfg), str(cfg))
    network, ours = yolov3.network_of(num_classes, options.pop("settings", {}), **options)
    settings, scales = theirs["settings"], len(network.strides)

    def by_scale(settings: yolov3.Settings) -> list:
        masks = yolov3.masks_of(settings, scales)
        return np.asarray(settings.anchors, np.float32)[np.asarray(masks)].tolist()

    if (theirs["num_classes"], theirs["tiny"]) != (num_classes, network.tiny):
        return  # what is taken of it are features
    if by_scale(yolov3.Settings(**settings)) != by_scale(ours):
        expected = {name: settings[name] for name in ("anchors", "masks")}
        raise ValueError(f"config.model.settings has other anchors than {cfg}, expected {expected}")


def training_batches(
    config: ConfigDict, dataset: Dataset, start: int, process: tuple[int, int]
) -> Iterator[Batch]:
    """This process's rows of every training batch from `start` on."""
    data, augment = config.data, config.augment
    examples = dataset.splits[data.train_split]
    switches = ("flip", "vertical_flip", "rotate", "expand", *_MIXED, "min_visible")
    colors = ("brightness", "contrast", "saturation", "hue", "color_probability", "channel_shuffle")
    prepare_example = partial(
        pipeline.augment_example,
        crop_size=tuple(data.crop_size),
        scales=tuple(augment.scales),
        min_sizes=tuple(augment.min_sizes),
        crop_overlaps=tuple(augment.crop_overlaps),
        color={name: augment[name] for name in colors},
        elastic=tuple(augment.elastic) or None,
        keypoint_flip=tuple(dataset.keypoint_flip),
        others=examples,
        max_objects=data.max_objects,
        masks=data.masks,
        **{name: augment[name] for name in switches},
        **_finish(config, dataset),
    )
    return pipeline.training_batches(
        examples,
        prepare_example,
        batch_size=data.batch_size,
        seed=config.seed,
        start=start,
        process=process,
        num_workers=data.num_workers,
        groups=_groups(config, dataset, data.train_split),
    )


def evaluation_batches(
    config: ConfigDict, dataset: Dataset, split: str, process: tuple[int, int]
) -> Iterator[Batch]:
    """This process's rows of the batches of a whole split. They have no objects: these are looked
    up in the split, at `image_id`, at the file's own size and however many they are."""
    return pipeline.evaluation_batches(
        dataset.splits[split],
        partial(pipeline.whole_example, **_finish(config, dataset)),
        batch_size=config.data.eval_batch_size,
        process=process,
        groups=_groups(config, dataset, split),
    )


def make_scoring(
    config: ConfigDict, dataset: Dataset, split: str, task: Task, predict: Callable
) -> Callable[..., Scored]:
    """`score(variables, check=None) -> Scored` on a split."""
    measure = make_evaluate(predict, task, data_mesh())
    process = jax.process_index(), jax.process_count()

    def score(variables: Variables, check: Callable[[], None] | None = None) -> Scored:
        batches = evaluation_batches(config, dataset, split, process)
        counts, (batch, predictions) = measure(variables, batches, check)
        examples = [
            task.draw(_row(batch, i), _row(predictions, i))
            for i in range(min(4, len(batch["valid"])))
            if batch["valid"][i]
        ]
        rows = [list(example.values()) for example in examples]
        # A process may have had nothing but what fills up the last batch.
        shown = {split: draw.panel(rows, titles=list(examples[0]))} if examples else {}
        pictures = shown | task.figures(counts)
        return Scored(split, task.score(counts), task.report(counts), pictures, counts)

    return score


# ---- a run's folder ----


def claim_workdir(workdir: Path, config: ConfigDict, info: Info, *, override: bool) -> None:
    """See that a run's folder is new or has the same config, and write it there.

    With several processes all look, the first writes. ValueError with the difference where the
    config is another and `override` is False.
    """
    path, text = workdir / "config.json", config.to_json(indent=2, sort_keys=True) + "\n"
    if path.exists() and path.read_text() != text and not override:
        lines = difflib.unified_diff(
            path.read_text().splitlines(), text.splitlines(), str(path), "this config", n=0
        )
        raise ValueError(
            f"{workdir} belongs to a run with another config:\n"
            + "\n".join(line.rstrip() for line in lines)
            + "\nTake another workdir, or give --override to go on with the new config."
        )
    if jax.process_index():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    record = {**info._asdict(), "palette": np.asarray(info.palette).tolist()}
    write_whole(workdir / "dataset.json", json.dumps(record, indent=2) + "\n")


def open_run(workdir: Path, *, which: str = "best") -> Run:
    """A run's model with its weights; which: "best" or "last" checkpoint."""
    for name in ("config.json", "dataset.json"):
        if not (workdir / name).is_file():
            raise FileNotFoundError(f"{workdir} is not the workdir of a run: it has no {name}")
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    record = json.loads((workdir / "dataset.json").read_text())
    info = Info(
        record["name"],
        tuple(record["classes"]),
        np.array(record["palette"], np.uint8),
        tuple(record["class_weights"]),
        tuple(record.get("keypoint_names", ())),  # older runs have none
        _plain(record.get("skeleton", ())),
    )
    variables, step = load_variables(workdir / "checkpoints", which=which)
    return Run(config, info, build_model(config, info), variables, step)


def _finish(config: ConfigDict, dataset: Dataset) -> dict[str, Any]:
    """What training's and evaluation's examples agree on."""
    data = config.data
    return dict(
        num_classes=len(dataset.classes),
        image_size=tuple(data.image_size),
        resize=resize_of(data),
        buckets=_plain(data.get("buckets", ())),
        border_weights=tuple(data.border_weights) or None,
    )


def _groups(config: ConfigDict, dataset: Dataset, split: str) -> list[np.ndarray] | None:
    """The examples of each bucket; None without buckets."""
    finish = _finish(config, dataset)
    if not finish["buckets"]:
        return None
    sizes = dataset.sizes[split]
    return transforms.group_by_bucket(sizes, finish["buckets"], finish["resize"])


def _row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], tree)


def _plain(value: Any) -> Any:
    """ConfigDicts as dicts, lists as tuples, as Linen modules want their fields."""
    if isinstance(value, ConfigDict | dict):
        return {name: _plain(item) for name, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value
