"""Learned filters in high dimensions: convolutions on the permutohedral lattice.

Kiefel, Jampani, Gehler 2015, "Permutohedral Lattice CNNs"; Jampani, Kiefel, Gehler 2016, "Learning
Sparse High Dimensional Filters". Between splat and slice, where a Gaussian filter blurs along each
direction of the lattice, a vertex now sums all vertices of its neighbourhood with any weights.

    size       s of a neighbourhood, in steps from its centre; a step leads to any of the vertices
               that share a simplex with a vertex
    n          vertices of a neighbourhood, (s + 1)ᴰ − sᴰ:    d      2     3     5
                                                              s = 1    7    15    63
                                                              s = 2   19    65   665
                                                              s = 3   37   175  3367
    weights    of a filter: [n 1] the same for all channels, [n K] one filter for each channel,
               [n K F] from K channels to F, in the order of `neighbourhood`
    R          rows, V + 1: row 0 stands for all that is not there, and its value is 0

A lattice holds (n − 1) R numbers of neighbours, 4 bytes each. Filtering, and its gradient, needs
[R K] and [R F], but no array of both neighbours and channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int
from scipy.special import comb

from jaxseg.crf import permutohedral
from jaxseg.crf.mean_field import Pairwise, cost
from jaxseg.crf.permutohedral import Lattice, slice_at, splat
from jaxseg.types import Array

BLOCK = 4096  # vertices that are summed at once


def neighbourhood(d: int, size: int) -> Int[np.ndarray, "n D"]:
    """The lattice vectors within `size` steps, in coordinates, each opposite its negative: the i-th
    first is minus the i-th last, and 0 is in the middle. ValueError unless size is 1, 2 or 3.

    With a step e_k along direction k, every lattice vector is Σ_k c_k e_k, c_k ≥ 0. As Σ_k e_k = 0,
    it is so in one way with min c = 0. Vertices share a simplex where they differ by Σ e_k over
    some of the directions; hence a vector is max c such steps long.
    """
    if size not in (1, 2, 3):
        raise ValueError(f"size is {size}, expected 1, 2 or 3")
    counts = np.indices((size + 1,) * (d + 1)).reshape(d + 1, -1).T
    vectors = counts[counts.min(1) == 0] @ permutohedral.directions(d)
    return np.unique(vectors, axis=0)  # sorted, which the negative is in reverse


def gaussian_weights(d: int, size: int) -> Float[np.ndarray, "n 1"]:
    """The filter that is nearly v ↦ K v, K_ij = exp(−½ |f_i − f_j|²), on the lattice of `build`.

    It is the coefficients of (1 + e_1)ˢ … (1 + e_D)ˢ, e_k a step along direction k: a binomial
    kernel along each. It fills the neighbourhood, is symmetric, for e_1 … e_D leads back, and for
    size 2 is the [½ 1 ½] of `permutohedral`, less that it stops where a vertex on the way is not
    there. Error |K̂v − Kv| / |Kv| with symmetric normalisation, for 2,000 points, uniform in a cube
    (exp(−½ |f|²) at the neighbours, with no change of spacing, is about as good with it, but off by
    10 %, 23 % and 67 % for size 1 without it):

        d                         2       3       5
        size 1                 1.4 %   1.7 %   3.1 %
        size 2                 0.8 %   0.9 %   2.0 %
        size 3                 0.6 %   0.7 %
        permutohedral          1.2 %   1.2 %   2.0 %
    """
    vectors = neighbourhood(d, size)
    counts = (vectors.max(1, keepdims=True) - vectors) // (d + 1)
    kernel = sum(np.prod(comb(size, counts + turn), axis=1) for turn in range(size + 1))
    volume = 1.5 ** (d / 2) / np.sqrt(d + 1) / spacing(size) ** d  # of features, for each vertex
    gain = (2 * np.pi) ** (d / 2) / volume / 2 ** (size * (d + 1))
    return (gain * kernel)[:, None].astype(np.float32)


def spacing(size: int) -> float:
    """What features are multiplied by for the filter to be of unit variance: that kernel has one of
    size·D²/4, splatting and slicing D²/6, and `permutohedral.embedding` is for 2D²/3."""
    return float(np.sqrt((size / 4 + 1 / 6) / (2 / 3)))


def build(features: Float[Array, "N d"], size: int = 1, capacity: int | None = None) -> Lattice:
    """The lattice around features in standard deviations, with neighbourhoods of that size.
    capacity: see `permutohedral.build`; it decides what memory neighbours take.

    No gradient with respect to the features: TypeError where one is asked for. ValueError unless
    size is 1, 2 or 3.
    """
    vectors = neighbourhood(features.shape[1], size)
    features = permutohedral.without_gradient(features) * spacing(size)
    return permutohedral.build(features, capacity, vectors[len(vectors) // 2 + 1 :])


def apply(
    lattice: Lattice, weights: Float[Array, "n *KF"], values: Float[Array, "N K"]
) -> Float[Array, "P F"]:
    """The values filtered, at all P points of the lattice; F = K unless weights say otherwise.
    Points after the first N have no values and are only read at: joint up-sampling. NaN where the
    lattice has more vertices than there is room for. ValueError for weights of another size.

    With gradients in weights and values, which cost no more than as many filters.
    """
    neighbours, points = 2 * len(lattice.neighbours) + 1, lattice.corners.shape[1]
    if len(weights) != neighbours:
        raise ValueError(f"{len(weights)} weights, expected {neighbours}, one for each neighbour")
    return _apply(lattice, weights, jnp.pad(values, ((0, points - len(values)), (0, 0))))


@jax.custom_vjp
def _apply(lattice: Lattice, weights: Array, values: Array) -> Array:
    return _forward(lattice, weights, values)[0]


def _forward(lattice: Lattice, weights: Array, values: Array) -> tuple[Array, tuple]:
    splatted = splat(lattice, values)
    filtered = slice_at(lattice, convolve(lattice, weights, splatted))
    fits = lattice.count < lattice.neighbours.shape[-1]
    return jnp.where(fits, filtered, jnp.nan), (lattice, weights, splatted)


def _gradient(saved: tuple, g: Array) -> tuple[None, Array, Array]:
    lattice, weights, splatted = saved
    g = splat(lattice, g)
    transposed = weights[::-1].swapaxes(1, -1) if weights.ndim == 3 else weights[::-1]
    dvalues = slice_at(lattice, convolve(lattice, transposed, g))
    return None, weights_gradient(lattice, weights, splatted, g), dvalues


_apply.defvjp(_forward, _gradient)


def convolve(
    lattice: Lattice, weights: Float[Array, "n *KF"], values: Float[Array, "R K"]
) -> Float[Array, "R F"]:
    """Σ_k weights[k] · values[neighbour k] of each vertex. Row 0 of the values has to be 0."""

    def block(start: Array, neighbours: Array, _: Array, result: Array) -> Array:
        def add(total: Array, neighbour: tuple) -> tuple[Array, None]:
            rows, weight = neighbour
            return total + product(take(values, rows), weight), None

        own = lax.dynamic_slice_in_dim(values, start, neighbours.shape[1])
        centre, others = by_pairs(weights)
        total = lax.scan(add, product(own, centre), (neighbours, others), unroll=4)[0]
        return lax.dynamic_update_slice_in_dim(result, total, start, 0)

    width = values.shape[1] if weights.ndim == 2 else weights.shape[2]
    return over_blocks(lattice, block, jnp.zeros((len(values), width), values.dtype))


def weights_gradient(
    lattice: Lattice, weights: Array, values: Float[Array, "R K"], g: Float[Array, "R F"]
) -> Float[Array, "n *KF"]:
    """Of Σ g · convolve(lattice, weights, values)."""

    def block(start: Array, neighbours: Array, new: Array, total: tuple) -> tuple:
        size = neighbours.shape[1]
        some = jnp.where(new[:, None], lax.dynamic_slice_in_dim(g, start, size), 0)

        def one(values: Array, weight: Array) -> Array:
            return jax.vjp(lambda w: product(values, w), weight)[1](some)[0]

        centre, others = by_pairs(weights)
        dcentre = one(lax.dynamic_slice_in_dim(values, start, size), centre)
        near = neighbours, others
        dothers = lax.map(lambda there: one(take(values, there[0]), there[1]), near)
        return jax.tree.map(jnp.add, total, (dcentre, dothers))

    total = over_blocks(lattice, block, jax.tree.map(jnp.zeros_like, by_pairs(weights)))
    return jax.linear_transpose(by_pairs, weights)(total)[0]


def by_pairs(weights: Float[Array, "n *KF"]) -> tuple[Array, Float[Array, "n-1 *KF"]]:
    """That of the centre, and the others in the order of `Lattice.neighbours`."""
    half = len(weights) // 2
    pairs = jnp.stack([weights[half + 1 :], weights[:half][::-1]], axis=1)
    return weights[half], pairs.reshape(2 * half, *weights.shape[1:])


def take(values: Float[Array, "R K"], rows: Int[Array, "S"]) -> Float[Array, "S K"]:
    return values.at[rows].get(mode="promise_in_bounds")


def product(values: Float[Array, "R K"], weight: Float[Array, "*KF"]) -> Float[Array, "R F"]:
    if weight.ndim == 1:
        return values * weight[None]
    return jnp.matmul(values, weight, precision=lax.Precision.HIGHEST)


def over_blocks(lattice: Lattice, step: Callable, state: Any) -> Any:
    """Steps (first row, its neighbours [n−1 S], which rows are new [S], state) -> state, in blocks
    of the lattice's rows, as many as there are vertices, however many there is room for."""
    rows = lattice.neighbours.shape[-1]
    size = min(rows, BLOCK)
    neighbours = lattice.neighbours.reshape(-1, rows)

    def body(i: Array, state: Any) -> Any:
        start = jnp.minimum(i * size, rows - size)
        some = lax.dynamic_slice_in_dim(neighbours, start, size, axis=1)
        return step(start, some, start + jnp.arange(size) >= i * size, state)

    return lax.fori_loop(0, jnp.minimum(lattice.count, rows - 1) // size + 1, body, state)


class Term(NamedTuple):
    """One pairwise term."""

    weights: Float[Array, "n K"]  # or [n 1]
    compatibility: Float[Array, "..."] | float  # as in `mean_field`


def mean_field_steps(
    logits: Float[Array, "N K"], lattices: Sequence[Lattice], steps: Sequence[Sequence[Term]]
) -> Float[Array, "N K"]:
    """The logits of Q after mean-field steps from softmax(logits), each with a term for every
    lattice. Of Jampani et al. 2016: [terms] is MF-1, [terms, terms] MF-2, where both steps share
    their filters, and [first, second] loose MF-2, where each has its own.

    Filters are normalised symmetrically, by what Gaussian ones of their size make of a constant:
    with `gaussian_weights` it is the Gaussian CRF. Points hear themselves, which is learned, too.
    """
    scales = [lax.rsqrt(total(lattice)) for lattice in lattices]

    def pairwise(lattice: Lattice, scale: Array, term: Term) -> Pairwise:
        def filter(values: Array) -> Array:
            return scale * apply(lattice, term.weights, scale * values)

        return Pairwise(filter, term.compatibility)

    current = logits
    for terms in steps:
        costs = cost(jax.nn.softmax(current), [*map(pairwise, lattices, scales, terms)])
        current = logits - costs
    return current


def total(lattice: Lattice, points: int | None = None) -> Float[Array, "P 1"]:
    """Σ_j K_ij over the first `points` j of the lattice, over all if not given; K is Gaussian."""
    side = len(lattice.corners)
    sizes = {(size + 1) ** side - size**side: size for size in (1, 2, 3)}
    weights = gaussian_weights(side - 1, sizes[2 * len(lattice.neighbours) + 1])
    return apply(lattice, jnp.asarray(weights), jnp.ones((points or lattice.corners.shape[1], 1)))
