"""The dense conditional random field: every pixel is joined to every other.

Krähenbühl & Koltun 2011, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", section 3: of pixels at p with colours I, two kernels (equation 3),

    bilateral   exp(−|p_i − p_j|² / 2 bilateral_sigma² − |I_i − I_j|² / 2 colour_sigma²)
    spatial     exp(−|p_i − p_j|² / 2 spatial_sigma²)

each with a weight. Labels that lie together by them, and differ, cost.

    logits  of the labels, [… H W K]: −ψ_u, what is known of each pixel by itself
    image   its colours, [… H W 3], RGB from 0 to 255
    inside  bool [… H W]: pixels of the picture, not of padding

A picture longer or wider than TILE is refined in tiles, each with MARGIN pixels of context. So
memory is bounded: beside logits, picture and result, about 450 bytes a pixel of a tile and 10 for
each label, 0.7 GB for 21 labels; where the lattice needs all of its room, 2.1 GB. (By XLA's own
account on CPU, of tiles of 1024×1024 pixels with 3 and 21 labels.)
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float

from jaxseg.crf import filtering, permutohedral, spatial
from jaxseg.crf.energies import (
    bilateral_features,
    grid_features,
    known,
    logits_from_probabilities,
)
from jaxseg.crf.filtering import normalized
from jaxseg.crf.mean_field import Filter, Pairwise, mean_field
from jaxseg.ops.padding import colours_of, picture_mask
from jaxseg.types import Array

TILE, MARGIN = 1024, 160  # pixels; context of two of the usual bandwidths
ROOM = 1.0, 6.0  # vertices a pixel: what pictures need, and what noise needs
Number = float | int | Array
Predict = Callable[[Any, Array], dict[str, Array]]  # (variables, image)


class Options(NamedTuple):
    """What a compiled program depends on, as `dense_crf` has it."""

    iterations: int
    normalization: str
    backend: str
    room: float | int | None
    tile: int
    spatial_sigma: float | None  # None: it is traced


def dense_crf(
    logits: Float[Array, "*B H W K"],
    image: Array,
    *,
    spatial_sigma: Number = 3.0,
    spatial_weight: Number = 3.0,
    bilateral_sigma: Number = 80.0,
    colour_sigma: Number = 13.0,
    bilateral_weight: Number = 10.0,
    compatibility: Array | None = None,
    iterations: int = 10,
    normalization: str = "symmetric",
    backend: str = "permutohedral",
    room: float | int | None = None,
    tile: int = TILE,
    inside: Array | None = None,
) -> Float[Array, "*B H W K"]:
    """The logits of Q, whose softmax are the marginals, for one picture or a batch. Computed in
    float32 and given back in the dtype of `logits`.

    spatial_sigma, bilateral_sigma: in pixels; colour_sigma: in levels of 255. A spatial_sigma that
    is a Python number is part of the program, which is smaller and faster for it; others may change
    without compiling again.
    spatial_weight, bilateral_weight: a number, or one for each label [K].
    compatibility: [K K], cost of label k beside l, times the weight (of l); None: Potts' model.
    normalization, backend: see `crf.filtering`.
    room: vertices of the lattice that there is room for, in multiples of the pixels. ROOM[1], 6,
    always suffices; with a smaller number and too many vertices the result is NaN. None: 1 and,
    where that was too small, 6, with a warning unless traced. (For gradients of what is traced
    rather give a number, for both ways would be kept.)
    tile: side in pixels of the largest picture that is refined whole.
    inside: bool [… H W]; elsewhere pixels hear themselves alone, and are not heard.

    Gradients: to logits, weights and compatibility; to image and bandwidths by the backends nystrom
    and exact. Raises ValueError where sizes do not fit; and, of what is not traced, for logits that
    are not finite, colours outside 0 … 255, and bandwidths not above zero.
    """
    numbers: dict[str, Any] = dict(
        spatial_sigma=spatial_sigma,
        spatial_weight=spatial_weight,
        bilateral_sigma=bilateral_sigma,
        colour_sigma=colour_sigma,
        bilateral_weight=bilateral_weight,
    )
    _check(logits, image, inside, numbers, compatibility, iterations, tile)
    fixed = isinstance(spatial_sigma, float | int)
    sigma = float(numbers.pop("spatial_sigma")) if fixed else None
    options = Options(iterations, normalization, backend, room, tile, sigma)
    if compatibility is not None:
        numbers["compatibility"] = compatibility
    numbers = {name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()}
    refine = partial(_refine, logits, image, inside, numbers)
    if room is not None or backend != "permutohedral" or not known((logits, image, numbers)):
        return refine(options)
    # The second program is compiled where it is needed alone.
    result = refine(options._replace(room=ROOM[0]))
    if jnp.isfinite(result).all():
        return result
    told = f"lattices of more than {ROOM[0]} vertices a pixel: once more, with {ROOM[1]}"
    warnings.warn(told, stacklevel=2)
    return refine(options._replace(room=ROOM[1]))


@partial(jax.jit, static_argnums=4)
def _refine(
    logits: Array, image: Array, inside: Array | None, numbers: dict[str, Array], options: Options
) -> Array:
    def one(maps: tuple) -> Array:
        return over_tiles(partial(_picture, numbers, options), maps, options.tile)

    maps = logits.astype(jnp.float32), image.astype(jnp.float32), inside
    # One after the other: on CPU this is faster than filtering all at once.
    result = one(maps) if logits.ndim == 3 else lax.map(one, maps)
    return result.astype(logits.dtype)


def _picture(
    numbers: dict[str, Array],
    options: Options,
    logits: Float[Array, "H W K"],
    image: Float[Array, "H W 3"],
    inside: Bool[Array, "H W"] | None,
) -> Float[Array, "H W K"]:
    (height, width, labels), points = logits.shape, logits.shape[0] * logits.shape[1]
    sigma = options.spatial_sigma
    sigma = numbers["spatial_sigma"] if sigma is None else sigma
    features = bilateral_features(image, numbers["bilateral_sigma"], numbers["colour_sigma"])
    matrix = numbers.get("compatibility")

    def term(filter: Filter, weight: Array) -> Pairwise:
        filter = filter if inside is None else among(inside.reshape(points, 1), filter)
        cost = weight if matrix is None else matrix * weight.reshape(1, -1)
        return Pairwise(normalized(filter, points, options.normalization), cost)

    smooth = term(near((height, width), sigma, options), numbers["spatial_weight"])

    def infer(room: float | None = None) -> Array:
        given = {} if room is None else {"capacity": round(room * points)}
        alike = filtering.gaussian(features, options.backend, **given)
        terms = smooth, term(alike, numbers["bilateral_weight"])
        return mean_field(logits.reshape(points, labels), terms, options.iterations)

    if options.backend != "permutohedral":
        result = infer()
    elif options.room is not None:
        result = infer(options.room)
    else:
        first = infer(ROOM[0])
        result = lax.cond(jnp.isfinite(first).all(), lambda: first, lambda: infer(ROOM[1]))
    return result.reshape(height, width, labels)


def near(size: tuple[int, int], sigma: Number, options: Options) -> Filter:
    """The spatial kernel's filter: by a lattice where the bilateral one's is, as published, and
    exact elsewhere. (It is as fast; its error is small beside that of the bilateral lattice.)"""
    if options.backend != "permutohedral":
        return spatial.gaussian(size, (sigma, sigma))
    if options.spatial_sigma is None:
        capacity = round((options.room or ROOM[1]) * size[0] * size[1])
    else:  # There is a vertex for each √¾ σ², and up to σ beyond the border.
        height, width = (length / options.spatial_sigma + 3 for length in size)
        capacity = int(height * width / np.sqrt(0.75)) + 1
    return permutohedral.gaussian(grid_features(size, (sigma, sigma)), capacity)


def among(inside: Bool[Array, "N 1"], filter: Filter) -> Filter:
    """The filter of some points; the others hear themselves alone."""
    some = inside.astype(jnp.float32)
    return lambda values: some * filter(some * values) + (1 - some) * values


def over_tiles(
    function: Callable[..., Array], maps: tuple, tile: int, margin: int = MARGIN
) -> Array:
    """function(*maps), [H W C] for maps [H W …] (or None), larger than `tile`: by windows of which
    `margin` pixels on the sides within the picture are context only."""
    height, width = maps[0].shape[:2]
    if max(height, width) <= tile:
        return function(*maps)
    size = min(height, tile), min(width, tile)
    margin = min(margin, (tile - 1) // 2)

    def starts(length: int) -> np.ndarray:
        last = max(length - tile, 0)
        return np.minimum(np.arange(0, last + tile - 2 * margin, tile - 2 * margin), last)

    corners = np.stack(np.meshgrid(starts(height), starts(width), indexing="ij"), -1).reshape(-1, 2)
    rows, columns = np.arange(size[0])[:, None, None], np.arange(size[1])[None, :, None]

    def window(x: Array, corner: Array) -> Array:
        return lax.dynamic_slice(x, (*corner, *[0] * (x.ndim - 2)), (*size, *x.shape[2:]))

    # In the order of the windows, each writes but its first margin over what is there already.
    def refine(result: Array, corner: Array) -> tuple[Array, None]:
        new = function(*jax.tree.map(lambda x: window(x, corner), maps))
        margins = jnp.where(corner > 0, margin, 0)
        ours = (rows >= margins[0]) & (columns >= margins[1])
        new = jnp.where(ours, new, window(result, corner))
        return lax.dynamic_update_slice(result, new, (*corner, 0)), None

    shape = jax.eval_shape(function, *jax.tree.map(lambda x: x[: size[0], : size[1]], maps))
    start = jnp.zeros((height, width, *shape.shape[2:]), shape.dtype)
    return lax.scan(refine, start, jnp.asarray(corners, jnp.int32))[0]


def settings_of(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings of `dense_crf` as JSON has them, as its arguments. ValueError, which names `where`
    they are from, for others."""
    parameters = inspect.signature(dense_crf).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "inside"]
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: {name!r} is none of {', '.join(known)}")
    lists = {
        name: np.array(x, np.float32) for name, x in given.items() if isinstance(x, list | tuple)
    }
    return {**given, **lists}


def behind(predict: Predict, **settings: Any) -> Predict:
    """A semantic model's `predict` with the CRF behind it, on its probabilities, as DeepLab v1 and
    v2 have it (Chen et al. 2015, section 4.2). settings: of `dense_crf`."""

    def refine(probabilities: Array, image: Float[Array, "B H W 3"]) -> Array:
        colours, inside = from_batch(image)
        logits = logits_from_probabilities(probabilities)
        return dense_crf(logits, colours, inside=inside, **settings)

    def refined(variables: Any, image: Array) -> dict[str, Array]:
        logits = refine(predict(variables, image)["probabilities"], image)
        return {"probabilities": jax.nn.softmax(logits), "segmentation": logits.argmax(-1)}

    return refined


def from_batch(
    image: Float[Array, "*B H W 3"],
) -> tuple[Float[Array, "*B H W 3"], Bool[Array, "*B H W"]]:
    """The colours, 0 to 255, of normalised pictures, and what of them is inside: the box around all
    that has not the colour of padding, which is the rounded mean. No gradient passes."""
    return colours_of(image), picture_mask(image)


def _check(
    logits: Array,
    image: Array,
    inside: Array | None,
    numbers: dict[str, Number],
    compatibility: Array | None,
    iterations: int,
    tile: int,
) -> None:
    """See `dense_crf`."""
    labels = logits.shape[-1]
    if logits.ndim not in (3, 4):
        raise ValueError(f"logits are {logits.shape}, expected [H W K] or [B H W K]")
    if image.shape != (*logits.shape[:-1], 3):
        raise ValueError(f"image is {image.shape}, expected {(*logits.shape[:-1], 3)} as of logits")
    if inside is not None and inside.shape != logits.shape[:-1]:
        raise ValueError(f"inside is {inside.shape}, expected {logits.shape[:-1]} as of logits")
    if compatibility is not None and compatibility.shape != (labels, labels):
        raise ValueError(f"compatibility is {compatibility.shape}, expected {(labels, labels)}")
    for name, value in numbers.items():
        shapes = [()] if name.endswith("sigma") else [(), (labels,)]
        if np.shape(value) not in shapes:
            raise ValueError(f"{name} is of shape {np.shape(value)}, expected a number")
        lowest = 0 if name.endswith("sigma") else -np.inf
        if known(value) and not (lowest < np.asarray(value)).all() & np.isfinite(value).all():
            raise ValueError(f"{name} is {value}, expected finite numbers above {lowest:g}")
    if iterations < 1 or tile < 2:
        raise ValueError(f"iterations, tile are {iterations}, {tile}; expected 1 and 2 or more")
    with jax.ensure_compile_time_eval():  # where they are at hand, also within a trace
        if known(logits) and not jnp.isfinite(logits).all():
            raise ValueError("logits: some are NaN or infinite")
        if known(image):
            lowest, highest = float(jnp.min(image)), float(jnp.max(image))
            unit = jnp.issubdtype(image.dtype, jnp.floating) and 0 < highest <= 1
            if unit or not 0 <= lowest <= highest <= 255:
                raise ValueError(f"image has colours {lowest:g} to {highest:g}, expected 0 to 255")
