"""Conditional random fields on a pixel grid: each pixel is joined to its neighbours alone.

Boykov & Jolly 2001, "Interactive Graph Cuts for Optimal Boundary & Region Segmentation of Objects
in N-D Images", section 2.1; Rother, Kolmogorov & Blake 2004, "GrabCut", equations 4 and 5. Of
labels x the energy is

    E(x) = Σ_i ψ_u(x_i) + Σ_ij w_ij μ(x_i, x_j)               over pairs ij of neighbours, each once
    w_ij = weight · exp(−β |I_i − I_j|²) / |i − j|
    β    = 1 / (2 ⟨|I_i − I_j|²⟩)                             the mean is over all pairs

so that labels change where colours do. For pictures, volumes and lines alike:

    image    colours [*S C], in any unit; *S is (H, W), or the size of a grid of any dimension
    logits   −ψ_u [*S K]
    weights  w [E *S]: of the pair of a pixel and the one that is an offset away, for each offset;
             0 where that is outside. Each pair is there once, and so E is half the neighbours
    compatibility  μ. A number w is Potts' model, w · [k ≠ l]; of a weight for each label, w [K],
             two neighbours that have label k gain w_k; a matrix [K K] gives costs
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxseg.crf.energies import known
from jaxseg.crf.mean_field import Filter, Pairwise, mean_field
from jaxseg.types import Array

Offset = tuple[int, ...]


def grid_crf(
    logits: Float[Array, "*S K"],
    image: Array,
    *,
    neighbours: int = 8,
    weight: float | Array = 1.0,
    beta: float | Array | None = None,
    compatibility: float | Array = 1.0,
    iterations: int = 10,
) -> Float[Array, "*S K"]:
    """The logits of Q by mean field, whose softmax are the marginals, for one picture [*S C].
    Computed in float32 and given back in the dtype of `logits`.

    neighbours, weight, beta: of `edge_weights`. Differentiable in all that is float. Raises
    ValueError where sizes do not fit, for logits that are not finite unless they are traced, and
    as `edge_weights` and `mean_field` do.
    """
    weights = edge_weights(image, neighbours, weight=weight, beta=beta)
    check(logits, weights, compatibility)
    K = logits.shape[-1]
    costs = compatibility if np.ndim(compatibility) < 2 else pair_costs(compatibility, K)
    unary = logits.reshape(-1, K).astype(jnp.float32)
    result = mean_field(unary, [Pairwise(kernel(weights), costs)], iterations)
    return result.reshape(logits.shape).astype(logits.dtype)


def edge_weights(
    image: Array,
    neighbours: int = 8,
    *,
    weight: float | Array = 1.0,
    beta: float | Array | None = None,
) -> Float[Array, "E *S"]:
    """w of an image [*S C], in float32.

    neighbours: 4 or 8 in a picture; 6, 18 or 26 in a volume.
    beta: None is that of the image, and 0 for one of a single colour; 0.0 leaves colours out.

    Differentiable in image, weight and β. Raises ValueError for other neighbourhoods and, of what
    is not traced, for an image that is not finite, and a weight or β that is not, or below zero.
    """
    if image.ndim < 2:
        raise ValueError(f"image is {image.shape}, expected a grid of colours [*S C]")
    if known(image) and not np.isfinite(image).all():
        raise ValueError("image: some colours are NaN or infinite")
    for name, value in ("weight", weight), ("beta", 0.0 if beta is None else beta):
        if known(value) and not (np.ndim(value) == 0 and 0 <= value < np.inf):
            raise ValueError(f"{name} is {value}, expected a finite number, 0 or more")
    return _edge_weights(jnp.asarray(image, jnp.float32), neighbours, weight, beta)


@partial(jax.jit, static_argnums=1)
def _edge_weights(
    image: Array, neighbours: int, weight: float | Array, beta: float | Array | None
) -> Array:
    pairs = offsets(image.ndim - 1, neighbours)
    squares = [((image[second(o)] - image[first(o)]) ** 2).sum(-1) for o in pairs]
    beta = contrast(squares) if beta is None else beta
    weights = [
        jnp.pad(weight / np.sqrt(np.dot(o, o)) * jnp.exp(-beta * square), outside(o))
        for o, square in zip(pairs, squares, strict=True)
    ]
    return jnp.stack(weights)


def contrast(squares: Sequence[Float[Array, "..."]]) -> Float[Array, ""]:
    """β of the squares |I_i − I_j|²; 0 where all are 0, or there are none."""
    mean = sum(square.sum() for square in squares) / max(1, sum(square.size for square in squares))
    return jnp.where(mean > 0, 0.5 / jnp.where(mean > 0, mean, 1), 0)


def kernel(weights: Float[Array, "E *S"]) -> Filter:
    """v ↦ K v with K_ij = w_ij for neighbours, and 0 for others and on the diagonal."""
    return partial(apply, weights)


@jax.jit
def apply(weights: Float[Array, "E *S"], values: Float[Array, "N K"]) -> Float[Array, "N K"]:
    """K v, differentiable in both."""
    size = weights.shape[1:]
    strides = [np.prod(size[axis + 1 :], dtype=int) for axis in range(len(size))]
    total = jnp.zeros_like(values)
    for o, weight in zip(offsets(len(size), 2 * len(weights)), weights, strict=True):
        # Row by row an offset is a shift: what it brings round the ends has the weight 0.
        shift, weight = int(np.dot(strides, o)), weight.reshape(-1, 1)
        total += weight * jnp.roll(values, -shift, 0) + jnp.roll(weight * values, shift, 0)
    return total


def energy(
    labels: Int[Array, "..."],
    logits: Float[Array, "..."],
    weights: Float[Array, "E *S"],
    compatibility: float | Array = 1.0,
) -> Float[Array, ""]:
    """E of labels [*S] with logits [*S K]. Raises ValueError where sizes do not fit; and, of what
    is not traced, for logits that are not finite and labels out of range."""
    check(logits, weights, compatibility)
    check_labels(labels, logits)
    return _energy(labels, logits, weights, pair_costs(compatibility, logits.shape[-1]))


@jax.jit
def _energy(labels: Array, logits: Array, weights: Array, costs: Array) -> Array:
    total = -jnp.take_along_axis(logits, labels[..., None], axis=-1).sum()
    for o, weight in zip(offsets(labels.ndim, 2 * len(weights)), weights, strict=True):
        total += (weight[first(o)] * costs[labels[first(o)], labels[second(o)]]).sum()
    return total


def pair_costs(compatibility: float | Array, num_classes: int) -> Float[Array, "K K"]:
    """μ as a matrix, and symmetric: E has both orders of a pair, each by half."""
    compatibility = jnp.asarray(compatibility, jnp.float32)
    if compatibility.ndim == 0:
        return compatibility * (1 - jnp.eye(num_classes))
    if compatibility.ndim == 1:
        return -jnp.diag(compatibility)
    return (compatibility + compatibility.T) / 2


def offsets(dimensions: int, neighbours: int) -> list[Offset]:
    """To half of the neighbours of a place, one of each opposite two. ValueError for numbers of
    neighbours that a grid of so many dimensions has not."""
    half = [o for o in product((-1, 0, 1), repeat=dimensions) if o > (0,) * dimensions]
    near = [[o for o in half if np.dot(o, o) <= square] for square in range(1, dimensions + 1)]
    choices = {2 * len(some): some for some in near}
    if neighbours not in choices:
        expected = " or ".join(map(str, choices))
        raise ValueError(f"neighbours is {neighbours}, expected {expected} in {dimensions}-D")
    return choices[neighbours]


def opposite(o: Offset) -> Offset:
    return tuple(-step for step in o)


def first(o: Offset) -> tuple[slice, ...]:
    """The places from which the offset does not lead outside the grid …"""
    return tuple(slice(max(0, -step), -step if step > 0 else None) for step in o)


def second(o: Offset) -> tuple[slice, ...]:
    """… and those to which it leads from them."""
    return first(opposite(o))


def outside(o: Offset) -> list[tuple[int, int]]:
    """How many places `first` leaves out at each end of each axis: the padding that brings it back
    to the size of the grid."""
    return [(max(0, -step), max(0, step)) for step in o]


def check(logits: Array, weights: Array, compatibility: float | Array) -> None:
    """ValueError where their sizes do not fit each other, and for logits that are not finite unless
    they are traced."""
    if weights.shape[1:] != logits.shape[:-1]:
        raise ValueError(
            f"logits are {logits.shape}, expected {(*weights.shape[1:], 'K')} as of the weights"
        )
    if known(logits) and not np.isfinite(logits).all():
        raise ValueError("logits: some are NaN or infinite")
    K = logits.shape[-1]
    if np.shape(compatibility) not in [(), (K,), (K, K)]:
        shape = np.shape(compatibility)
        raise ValueError(f"compatibility is {shape}, expected (), {(K,)} or {(K, K)}")


def check_labels(labels: Array, logits: Array) -> None:
    """ValueError for labels of another size, or out of range."""
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels are {labels.shape}, expected {logits.shape[:-1]} as of logits")
    if known(labels) and not np.isin(labels, range(logits.shape[-1])).all():
        raise ValueError(f"labels: some are not among 0 … {logits.shape[-1] - 1}")
