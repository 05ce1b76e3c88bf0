"""Export: `python -m jaxseg.export --workdir=RUN --output=model.stablehlo`, or
`--format=torchvision --output=model.pth` (or .safetensors), or
`--format=darknet --output=model.weights`.

torchvision: a state dict under torchvision's (or segmentation_models_pytorch's) names, for networks
that have a twin there, of any width.

darknet: of a YOLOv3, the arrays, and beside them `model.cfg`, the network, and `model.names`, its
classes without the background. Nothing is folded into the arrays: whatever the normalisation of
pictures, the network's first layer is given colours of 0 to 1, and these are Darknet's, too.
(Darknet puts a picture, enlarged or shrunk to fit, into the middle of grey; here it lies at the top
left, enlarged only where `data.resize` says so, on the mean colour.)

stablehlo: a serialised `jax.export` artifact, weights and normalisation included, for CPU, GPU
and TPU, with a batch of any length, and beside it `model.json`, its signature. jaxseg is not needed
to use it:

    exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
    found = exported.call(images)   # uint8 [B H W 3] RGB -> {"segmentation", "probabilities"}

Of a detector, `found` has as many rows for each image as its config has detections, and
"detection_mask" says which of them are meant: see OBJECTS. A picture is scaled to fit, to the
(shorter, longer) side "resize" of the signature if it has one, and lies at the top left of its
image; the rest has the colour "padding".
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import cli, run
from jaxseg.models import yolov3
from jaxseg.nn.options import expect
from jaxseg.tasks.detection import OF_PROPOSALS
from jaxseg.train.log import write_whole
from jaxseg.types import MEAN, PADDING, STD, Array, Variables
from jaxseg.weights import darknet
from jaxseg.weights.convert import lacking, to_torchvision
from jaxseg.weights.files import WeightsError, write_state_dict
from jaxseg.weights.tables import TWINS

PLATFORMS = ("cpu", "cuda", "tpu")

# What a detector tells of each of D objects, for its signature; m, and J joints, are the model's.
OBJECTS = {
    "boxes": "x0, y0, x1, y1 in pixels of the image, y downwards",
    "scores": "0 to 1, the best first",
    "labels": "place in the list of classes",
    "detection_mask": "which of the rows are meant; the others are to be ignored",
    "masks": "probability of the object, m x m pixels stretched over its box",
    "masks_aligned": "whether the centres of pixels lie at +0.5 in boxes and masks, or at 0",
    "keypoints": "x, y in pixels of the image, and 1",
    "keypoint_scores": "logits",
}


def export_run(opened: run.Run, output: Path, size: tuple[int, int] | None) -> dict:
    """Write the artifact and its signature, which is given back. size: (height, width) of its
    images, else those of the config: `image_size`, or the first of its buckets."""
    height, width = size or _canvas(opened)

    @jax.jit
    def predict(image: Array) -> dict[str, Array]:
        mean, std = (x.reshape(1, 1, 1, 3) for x in (MEAN, STD))
        normalized = (image.astype(jnp.float32) / 255 - mean) / std
        found = opened.model.predict(opened.variables, normalized)
        return {name: x for name, x in found.items() if name not in OF_PROPOSALS}

    (batch,) = jax.export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    exported = jax.export.export(predict, platforms=PLATFORMS)(image)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    signature = {
        "input": _describe(image),
        "outputs": {name: _describe(aval) for name, aval in outputs.items()},
        "color": "RGB, 0 to 255",
        "classes": list(opened.info.classes),
        **(_about_objects(outputs, opened) if run.is_detection(opened.config) else {}),
        "platforms": list(exported.platforms),
        "step": opened.step,
        "jax": jax.__version__,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, bytes(exported.serialize()))
    write_whole(output.with_suffix(".json"), json.dumps(signature, indent=2) + "\n")
    return signature


def export_darknet(opened: run.Run, output: Path, size: tuple[int, int] | None) -> dict:
    """Write NAME.weights, NAME.cfg and NAME.names of a run of YOLOv3; gives back what they are.
    size: (height, width) of the network's pictures, as for `export_run`. ValueError for any other
    network, and where 32 does not divide the size."""
    options, classes = opened.config.model.to_dict(), opened.info.classes
    name = options.pop("name")
    if run.find_module("model", name) is not yolov3:
        raise ValueError(f"the run's model is {name}: of all networks, only yolov3 goes to Darknet")
    network, settings = yolov3.network_of(len(classes), options.pop("settings", {}), **options)
    expect("config.model.norm", network.norm, ["batch", "frozen"])
    height, width = size or _canvas(opened)
    if height % 32 or width % 32:
        raise ValueError(f"the size is {height},{width}, expected multiples of 32: see --size")
    family = "yolov3_tiny" if network.tiny else "yolov3"
    sections = darknet.yolov3_cfg(
        len(classes),
        anchors=settings.anchors,
        masks=yolov3.masks_of(settings, len(network.strides)),
        tiny=network.tiny,
        width=network.width,
        ignore_iou=settings.ignore_iou,
        image_size=(height, width),
    )
    seen = opened.step * opened.config.data.batch_size
    weights = darknet.Weights(to_torchvision(opened.variables, family), seen)
    files = {kind: output.with_suffix(f".{kind}") for kind in ("weights", "cfg", "names")}
    output.parent.mkdir(parents=True, exist_ok=True)
    darknet.write_weights(files["weights"], sections, weights)
    darknet.write_cfg(files["cfg"], sections)
    write_whole(files["names"], "".join(f"{name}\n" for name in classes[1:]))
    return {
        "family": family,
        "files": [str(path) for path in files.values()],
        "size": [height, width],
        "step": opened.step,
    }


def export_torchvision(opened: run.Run, output: Path) -> dict:
    """Write the state dict of a run's network; gives back its family and size. ValueError where
    neither torchvision nor segmentation_models_pytorch has such a network."""
    if opened.config.model.get("aligned", False):
        raise ValueError("config.model.aligned is True, expected False: torchvision aligns nothing")
    module = run.find_module("model", opened.config.model.name)
    name = module.__name__.removeprefix("jaxseg.models.")
    family, state = torchvision_twin(name, opened.variables)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_state_dict(output, state)
    return {"family": family, "arrays": len(state), "step": opened.step}


def torchvision_twin(model: str, variables: Variables) -> tuple[str, dict[str, np.ndarray]]:
    """(family, state dict) of the published network that has just these layers, of whatever widths;
    strides and rates, which no array tells, are not compared. model: the name in `jaxseg.models` of
    the model whose variables they are. ValueError where there is no such network."""
    reasons = []
    for family in TWINS.get(model, ()):
        try:
            state = to_torchvision(variables, family)
        except WeightsError as error:
            reasons.append(str(error))
            continue
        if not (missing := lacking(state, family)):
            return family, state
        reasons.append(f"{family} has {', '.join(missing[:3])} besides ({len(missing)} such)")
    told = "; ".join(reasons) or f"{model} is none of {', '.join(TWINS)}"
    raise ValueError(f"this network has no twin in torchvision: {told}")


def _canvas(opened: run.Run) -> tuple[int, int]:
    """(height, width) of a run's pictures: of the first of its buckets, if it has some."""
    data = opened.config.data
    height, width = [*data.get("buckets", ()), data.image_size][0]
    return height, width


def _about_objects(outputs: dict[str, Any], opened: run.Run) -> dict:
    """What the signature of a detector says besides."""
    info, resize = opened.info, opened.config.data.get("resize", ())
    about = {
        "padding": PADDING.astype(int).tolist(),
        "meaning": {name: OBJECTS[name] for name in outputs if name in OBJECTS},
    }
    if len(resize):
        about["resize"] = list(resize)
    if "keypoints" in outputs:
        about |= {"keypoint_names": list(info.keypoint_names), "skeleton": list(info.skeleton)}
    return about


def _describe(array: Any) -> dict:
    shape = [n if isinstance(n, int) else str(n) for n in array.shape]
    return {"shape": shape, "dtype": str(array.dtype)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the artifact to write")
    parser.add_argument(
        "--size", type=cli.size_option, help="HEIGHT,WIDTH of its images, else those of the config"
    )
    formats = ["stablehlo", "torchvision", "darknet"]
    parser.add_argument("--format", choices=formats, default="stablehlo")
    options = parser.parse_args(argv)
    if options.format == "stablehlo" and options.output.suffix == ".json":
        parser.error("--output is the artifact, such as model.stablehlo; its JSON lies beside it")
    if options.format == "darknet" and options.output.suffix != ".weights":
        parser.error("--output is the weights, such as model.weights; the rest lies beside them")
    with cli.told_errors():
        opened = run.open_run(options.workdir, which=options.checkpoint)
        if options.format == "torchvision":
            written = export_torchvision(opened, options.output)
        elif options.format == "darknet":
            written = export_darknet(opened, options.output, options.size)
        else:
            written = export_run(opened, options.output, options.size)
    print(json.dumps(written, indent=2))


if __name__ == "__main__":
    main()
