"""Every experiment that trains a detector holds together: from files like those of its dataset to
a step of training, and to predictions and their measurement, at its own sizes. Only shapes are
computed, so this takes seconds for networks of any size; one that is tiny is really trained."""

import json
import re
from functools import partial
from itertools import product
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg import evaluate, export, predict, run
from jaxseg.data.builders import coco
from jaxseg.main import run_experiment
from jaxseg.train.optim import make_optimizer, make_schedule
from jaxseg.train.step import init_state, make_step

ROOT = Path(__file__).parents[1]
SIZES = {"1": (60, 80), "2": (80, 60), "3": (60, 80)}  # (height, width) of pictures, by their names
BOXES = (8, 6, 40, 44), (30, 20, 58, 50)  # in each of them: x0, y0, x1, y1
ROWS = 2
OF_TWO_STAGES = {"objectness", "rpn_box", "class", "box"}
LOSSES = {
    "faster_rcnn": OF_TWO_STAGES,
    "mask_rcnn": OF_TWO_STAGES | {"mask"},
    "keypoint_rcnn": OF_TWO_STAGES | {"keypoint"},
    "yolo": {"centre", "size", "object", "no_object", "class"},
    "yolov3": {"centre", "size", "object", "no_object", "class"},
    "yolox": {"box", "objectness", "class"},
    "ssd": {"class", "box"},
    "retinanet": {"class", "box"},
    "fcos": {"class", "box", "centreness"},
}


# ---- experiments


def read_experiment(path):
    names = {}
    exec(path.read_text(), names)
    return names


def variants_of(names):
    """Arguments of an experiment's `get_config`. It names them where it is asked for another."""
    get_config = names["get_config"]
    if "SYSTEMS" in names:
        pairs = product(names["SYSTEMS"], names["VARIANTS"])
        published = names.get("PUBLISHED", ())
        return [(",".join((s, v)),) for s, v in pairs if v != "published" or s in published]
    if not get_config.__code__.co_argcount:
        return [()]
    with pytest.raises(ValueError, match="expected") as error:
        get_config("?")
    words = re.findall(r"\w+", str(error.value).partition("expected")[2])
    return [(word,) for word in words if word not in ("one", "of", "or")]


def detectors():
    """Of each network the first small one; the rest are slow tests."""
    seen = set()
    for path in sorted(ROOT.glob("experiments/*.py")):
        names = read_experiment(path)
        get_config = names["get_config"]
        if run.is_detection(get_config()):
            for arguments in variants_of(names):
                name = ":".join([path.stem, *arguments])
                network, small = get_config(*arguments).model.name, name.endswith("cpu")
                marks = [pytest.mark.slow] * (not small or network in seen)
                seen |= {network} if small else set()
                yield pytest.param(partial(get_config, *arguments), id=name, marks=marks)


# ---- miniatures of datasets


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def picture(name):
    """Noise, and what is in it is brighter."""
    pixels = np.random.default_rng(int(name)).integers(0, 100, (*SIZES[name], 3), dtype=np.uint8)
    for x0, y0, x1, y1 in BOXES:
        pixels[y0:y1, x0:x1] += 100
    return pixels


def mask(name, box):
    x0, y0, x1, y1 = box
    pixels = np.zeros(SIZES[name], np.uint8)
    pixels[y0:y1, x0:x1] = 255
    return pixels


def wanted_splits(data):
    return {data.train_split, data.eval_split, *data.options.get("splits", ())}


def write_coco(root, data):
    kind = "person_keypoints" if data.options.get("keypoints") else "instances"
    person = {"id": 1, "name": "person", "keypoints": list(coco.KEYPOINTS), "skeleton": []}
    categories = [person] if kind == "person_keypoints" else [person, {"id": 3, "name": "car"}]
    for split in wanted_splits(data):
        images, annotations = [], []
        for name, (height, width) in SIZES.items():
            file = f"{split}2017/{name}.png"
            save(root / file, picture(name))
            images.append(dict(id=int(name), file_name=Path(file).name, height=height, width=width))
            for n, (x0, y0, x1, y1) in enumerate(BOXES):
                annotation = {
                    "id": 10 * int(name) + n,
                    "image_id": int(name),
                    "category_id": categories[n % len(categories)]["id"],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    "keypoints": [x0 + 5, y0 + 5, 2] * 17,
                }
                annotations.append(annotation)
        document = {"images": images, "annotations": annotations, "categories": categories}
        file = root / f"annotations/{kind}_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))


def write_voc(root, data, classes=("cat", "person")):
    years = data.options.get("year", "2012")
    for year in [years] if isinstance(years, str) else years:
        write_voc_like(root / f"VOC{year}", data, classes)


def write_voc_like(root, data, classes):
    tags = "xmin", "ymin", "xmax", "ymax"
    objects = ""
    for name, (x0, y0, x1, y1) in zip(classes, BOXES, strict=True):
        corners = zip(tags, (x0 + 1, y0 + 1, x1, y1), strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
        objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
    for name in SIZES:
        save(root / f"JPEGImages/{name}.jpg", picture(name))
        (root / "Annotations").mkdir(exist_ok=True)
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    for split in wanted_splits(data):
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(SIZES))


def write_pennfudan(root, data):
    for name in SIZES:
        save(root / f"PNGImages/{name}.png", picture(name))
        masks = [(n + 1) * (mask(name, box) > 0) for n, box in enumerate(BOXES)]
        save(root / f"PedMasks/{name}_mask.png", np.max(masks, axis=0).astype(np.uint8))
    write_lists(root, data)


def write_dsb2018(root, data):
    for name in SIZES:
        opaque = np.dstack([picture(name), np.full(SIZES[name], 255, np.uint8)])
        save(root / f"stage1_train/{name}/images/{name}.png", opaque)
        for n, box in enumerate(BOXES):
            save(root / f"stage1_train/{name}/masks/{n}.png", mask(name, box))
    write_lists(root, data)


def write_lists(root, data):
    for split in wanted_splits(data):
        (root / f"{split}.txt").write_text("\n".join(SIZES))


MINIATURES = {
    "bccd": partial(write_voc_like, classes=("RBC", "Platelets")),
    "coco": write_coco,
    "dsb2018": write_dsb2018,
    "pennfudan": write_pennfudan,
    "voc": write_voc,
}


def use_miniature(config, folder):
    """Write one like the dataset of the config, and have the config use it."""
    data = config.data
    data.cache = str(folder / "cache")
    if data.name == "shapes":
        data.options.update(num_train=3, num_val=3)
        return
    data.source = str(folder / "set")
    (folder / "set").mkdir()
    MINIATURES[data.name](folder / "set", data)


# ---- what must hold


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("get_config", [*detectors()])
def test_dry_run(get_config, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    config = get_config()
    run.check_config(config)
    use_miniature(config, tmp_path)
    data, optim = config.data, config.optim
    data.batch_size, data.eval_batch_size, data.num_workers = ROWS * optim.accumulate, ROWS, 0
    dataset = run.prepare_data(config)
    info = run.describe(dataset, data.train_split)
    model = run.build_model(config, info)
    task = run.build_task(config, dataset, data.eval_split)
    canvases = {tuple(size) for size in data.buckets}

    batch = next(run.training_batches(config, dataset, 0, (0, 1)))
    assert batch["image"].shape[1:3] in (canvases or {tuple(data.crop_size)})
    assert np.isfinite(batch["image"]).all()
    assert batch["boxes"].shape[1:] == (data.max_objects, 4)
    assert batch["object_mask"].any()
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    optimizer = make_optimizer(optim, config.steps)
    start = partial(init_state, optimizer=optimizer, ema=bool(optim.ema_decay))
    step = make_step(
        model, optimizer, seed=0, accumulate=optim.accumulate, ema_decay=optim.ema_decay or None
    )
    state = jax.eval_shape(start, variables)
    after, report = jax.eval_shape(step, state, batch)
    assert shapes(after) == shapes(state)
    name = config.model.name
    assert report.losses.keys() == LOSSES[name]

    usual = {"ssd300": 200, "ssd512": 200, "resnet": 200, "ssdlite320": 300, "retinanet": 300}
    usual = usual.get(config.model.get("variant", name), 100)  # of all others
    detections = config.model.get("settings", {}).get("detections", usual)
    batch = next(run.evaluation_batches(config, dataset, data.eval_split, (0, 1)))
    assert batch["image"].shape[1:3] in (canvases or {tuple(data.image_size)})
    found = jax.eval_shape(model.predict, variables, batch["image"])
    assert found["boxes"].shape == (ROWS, detections, 4)
    assert LOSSES[name] & {"mask", "keypoint"} <= {name.removesuffix("s") for name in found}
    measured = jax.eval_shape(task.measure, found, batch)
    assert measured["boxes"].shape == (ROWS, detections, 4)


def test_a_system_without_a_checkpoint_is_not_published():
    get_config = read_experiment(ROOT / "experiments/coco_systems.py")["get_config"]
    with pytest.raises(ValueError, match=r"yolox,published.*expected one of retinanet,.*yolov3"):
        get_config("yolox,published")


@pytest.mark.parametrize("name", ["coco_systems", "voc_systems"])
def test_yolox_ends_without_mosaic(name):
    config = read_experiment(ROOT / f"experiments/{name}.py")["get_config"]("yolox,full")
    first, changes = config.stages
    last = config.copy_and_resolve_references()
    last.update_from_flattened_dict(dict(changes))
    run.check_config(last)
    assert not first
    assert config.steps == 285 / 15 * last.steps
    assert (config.augment.mosaic, last.augment.mosaic) == (1.0, 0.0)
    assert (config.augment.mixup, last.augment.mixup) == (1.0, 0.0)
    assert (config.model.settings.l1, last.model.settings.l1) == (False, True)
    rate = make_schedule(last.optim, last.steps)
    assert rate(0) == rate(last.steps) == pytest.approx(config.optim.learning_rate / 20)


@pytest.mark.slow
def test_a_tiny_one_is_trained_and_used(tmp_path, capsys):
    config = read_experiment(ROOT / "experiments/mask_rcnn_coco.py")["get_config"]("cpu")
    use_miniature(config, tmp_path)
    config.steps, config.eval_every = 2, 0
    config.model.update(
        width=8,
        features=8,
        box_dense=(16,),
        mask_features=8,
        mask_convolutions=1,
        settings=dict(
            anchor_sizes=((8,), (16,), (32,), (48,), (64,)),
            rpn_samples=16,
            region_samples=16,
            proposals_per_level=(20, 20),
            proposals=(20, 20),
            detections=10,
        ),
    )
    config.data.image_size = config.data.crop_size = config.data.resize = (64, 64)
    config.data.batch_size = config.data.eval_batch_size = 8
    config.data.max_objects = 4
    workdir, out = tmp_path / "run", tmp_path / "out"
    run_experiment(config, workdir)
    scores = json.loads((workdir / "scores.json").read_text())
    assert {"AP", "AR_100", "mask_AP", "mask_AP50", "proposal_AR_10"} <= scores.keys()

    evaluate.main([f"--workdir={workdir}"])
    assert json.loads((workdir / "scores.json").read_text()) == scores
    assert f"{scores['mask_AP']:.4f}" in capsys.readouterr().out

    folder = tmp_path / "set/train2017"
    predict.main([f"--workdir={workdir}", f"--input={folder}", f"--output={out}"])
    found = json.loads((out / "detections.json").read_text())
    assert {d["image_id"] for d in found} <= {1, 2, 3}
    for one in found:
        assert tuple(one["segmentation"]["size"]) == SIZES[str(one["image_id"])]
        assert 0 < one["score"] < 1
    assert len(list(out.glob("*_overlay.png"))) == 3

    export.main([f"--workdir={workdir}", f"--output={tmp_path}/model.stablehlo"])
    signature = json.loads((tmp_path / "model.json").read_text())
    assert signature["outputs"]["masks"]["shape"] == ["b", 10, 56, 56]
    assert signature["classes"] == ["background", "person", "car"]
