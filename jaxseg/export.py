"""Export: `python -m jaxseg.export --workdir=RUN --output=model.stablehlo`, or
`--format=torchvision --output=model.pth` (or .safetensors).

The latter is a state dict under torchvision's (or segmentation_models_pytorch's) names, for
networks that have a twin there.

The former is a serialised `jax.export` artifact, weights and normalisation included, for CPU, GPU
and TPU, with a batch of any length, and beside it `model.json`, its signature. jaxseg is not needed
to use it:

    exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
    found = exported.call(images)   # uint8 [B H W 3] RGB -> {"segmentation", "probabilities"}
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import cli, run
from jaxseg.train.log import write_whole
from jaxseg.types import MEAN, STD, Array, Variables
from jaxseg.weights.convert import from_torchvision, to_torchvision
from jaxseg.weights.files import WeightsError, write_state_dict
from jaxseg.weights.tables import FAMILIES

PLATFORMS = ("cpu", "cuda", "tpu")


def export_run(workdir: Path, output: Path, checkpoint: str, size: tuple[int, int] | None) -> dict:
    """Write the artifact and its signature, which is given back."""
    opened = run.open_run(workdir, which=checkpoint)
    height, width = size or tuple(opened.config.data.image_size)

    @jax.jit
    def predict(image: Array) -> dict[str, Array]:
        mean, std = (x.reshape(1, 1, 1, 3) for x in (MEAN, STD))
        normalized = (image.astype(jnp.float32) / 255 - mean) / std
        return opened.model.predict(opened.variables, normalized)

    (batch,) = jax.export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    exported = jax.export.export(predict, platforms=PLATFORMS)(image)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    signature = {
        "input": _describe(image),
        "outputs": {name: _describe(aval) for name, aval in outputs.items()},
        "color": "RGB, 0 to 255",
        "classes": list(opened.info.classes),
        "platforms": list(exported.platforms),
        "step": opened.step,
        "jax": jax.__version__,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, bytes(exported.serialize()))
    write_whole(output.with_suffix(".json"), json.dumps(signature, indent=2) + "\n")
    return signature


def export_torchvision(workdir: Path, output: Path, checkpoint: str) -> dict:
    """Write the state dict of a run's network; gives back its family and size. ValueError where
    torchvision has no such network."""
    opened = run.open_run(workdir, which=checkpoint)
    family, state = torchvision_twin(opened.variables)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_state_dict(output, state)
    return {"family": family, "arrays": len(state), "step": opened.step}


def torchvision_twin(variables: Variables) -> tuple[str, dict[str, np.ndarray]]:
    """(family, state dict) of the published network with these variables."""
    reasons = []
    for family in FAMILIES:
        try:
            state = to_torchvision(variables, family)
        except WeightsError as error:
            reasons.append(str(error))
            continue
        if from_torchvision(state, family)[2] == family:
            return family, state
    raise ValueError(f"this network has no twin in torchvision: {min(reasons, key=len)}")


def _describe(array: Any) -> dict:
    shape = [n if isinstance(n, int) else str(n) for n in array.shape]
    return {"shape": shape, "dtype": str(array.dtype)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the artifact to write")
    parser.add_argument(
        "--size", type=cli.size_option, help="HEIGHT,WIDTH of its images, else those of the config"
    )
    parser.add_argument("--format", choices=["stablehlo", "torchvision"], default="stablehlo")
    options = parser.parse_args(argv)
    if options.format == "torchvision":
        with cli.told_errors():
            written = export_torchvision(options.workdir, options.output, options.checkpoint)
        print(json.dumps(written, indent=2))
        return
    if options.output.suffix == ".json":
        parser.error("--output is the artifact, such as model.stablehlo; its JSON lies beside it")
    with cli.told_errors():
        signature = export_run(options.workdir, options.output, options.checkpoint, options.size)
    print(json.dumps(signature, indent=2))


if __name__ == "__main__":
    main()
