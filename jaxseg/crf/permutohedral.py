"""Gaussian filtering in high dimensions on the permutohedral lattice.

Adams, Baek, Davis 2010, "Fast High-Dimensional Filtering Using the Permutohedral Lattice":
v ↦ K v with K_ij = exp(−½ |f_i − f_j|²), nearly, in time linear in the points. Values are splatted
onto the corners of the simplex that encloses their feature (section 3.1 of the paper), blurred
along each direction of the lattice (3.2), and read again at the features (3.3).

    N         points, of d features each, in standard deviations
    D         d + 1: corners of a simplex, directions of the lattice, coordinates of a vertex
    vertex    a lattice point that is a corner for some point. They are rows 1 … count of an array
              of R = V + 1; row 0 stands for all other lattice points, and its value is 0
    corner    r = 0 … d, of a simplex: that whose coordinates are all congruent to r modulo D
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int, UInt32

from jaxseg.crf.mean_field import Filter
from jaxseg.types import Array

CHUNK = 8  # points that are summed at once when splatting


class Corners(NamedTuple):
    """Of the simplices that enclose N points."""

    prints: UInt32[Array, "2 D N"]  # two hashes of a corner's coordinates, linear in them
    weights: Float[Array, "D N"]  # barycentric coordinates of the points


class Lattice(NamedTuple):
    """V vertices at most, and what is needed to filter on them."""

    count: Int[Array, ""]  # of vertices; if it is over V, the lattice is of no use
    corners: Int[Array, "D N"]  # the vertex
    weights: Float[Array, "D N"]
    neighbours: Int[Array, "D 2 V+1"]  # one step forwards, and one back (of L vectors: [L 2 V+1])
    # Points by vertex, in chunks for the splat. A chunk is of one vertex; weight 0 fills it up.
    chunk_vertex: Int[Array, "S"]
    chunk_points: Int[Array, "{CHUNK} S"]
    chunk_weights: Float[Array, "{CHUNK} S"]


def gaussian(features: Float[Array, "N d"], capacity: int | None = None) -> Filter:
    """The filter of features in standard deviations: see `build` and `apply`.

    It has no gradient with respect to them: that of its arithmetic has the wrong sign more often
    than not. TypeError where one is asked for; `nystrom` and `exact` have it.
    """
    return partial(apply, build(without_gradient(features), capacity))


@jax.custom_vjp
def without_gradient(features: Array) -> Array:
    return features


def _refuse(features: Any) -> tuple[Array, None]:
    if features.perturbed:
        raise TypeError(
            "the permutohedral lattice has no gradient with respect to its features: take the "
            "backend nystrom or exact, or jax.lax.stop_gradient of the features"
        )
    return features.value, None


without_gradient.defvjp(_refuse, lambda _, g: (g,), symbolic_zeros=True)


def embedding(d: int) -> np.ndarray:
    """[D d]: features to coordinates, divided by D, such that the filter is of unit variance.

    Orthogonal columns; blurring has a variance of D²/2 and splatting and slicing of D²/12 each,
    together 2D²/3 (Adams et al. 2010, section 3.1).
    """
    matrix = np.triu(np.ones((d + 1, d)))
    matrix[np.arange(1, d + 1), np.arange(d)] = -np.arange(1, d + 1)
    length = np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
    return matrix / length * np.sqrt(2 / 3)


def enclose(features: Float[Array, "N d"]) -> Corners:
    """The simplex around each point."""
    d = features.shape[1]
    matrix = jnp.asarray(embedding(d), features.dtype)
    elevated = jnp.matmul(matrix, features.T, precision=lax.Precision.HIGHEST)
    # The nearest corner-0 point is D·quotient; rank: coordinates in the order of what is left.
    nearest = jnp.round(elevated)
    left = elevated - nearest
    earlier = np.tri(d + 1, k=-1, dtype=bool)[..., None]  # which settles ties
    before = (left[None] > left[:, None]) | ((left[None] == left[:, None]) & earlier)
    quotient = nearest.astype(jnp.int32)
    # Coordinates of a lattice point sum to 0: where these do not, those rounded furthest step back.
    rank = before.sum(1, dtype=jnp.int32) + quotient.sum(0, dtype=jnp.int32, keepdims=True)
    step = (rank < 0).astype(jnp.int32) - (rank > d)
    rank, quotient = rank + step * (d + 1), quotient + step
    left = elevated - quotient

    def by_rank(values: Array) -> Array:
        ranks = np.arange(d + 1)[:, None]
        # Separate terms, which XLA:CPU adds up far faster than it reduces an axis.
        pairs = zip(rank[:, None], values[:, None], strict=True)
        return reduce(jnp.add, [jnp.where(r == ranks, v, 0) for r, v in pairs])

    # From a corner to the next all coordinates rise by 1; that of rank d, then d − 1 … falls by D.
    ordered = by_rank(left)[::-1]
    weights = (ordered - jnp.roll(ordered, 1, axis=0)).at[0].add(1)
    prints = []
    for factors in hash_factors(d):
        first = (quotient.astype(jnp.uint32) * ((d + 1) * factors)[:, None]).sum(
            0, dtype=jnp.uint32
        )
        falling = by_rank(factors[:, None])[:0:-1]
        steps = factors.sum(dtype=np.uint32) - np.uint32(d + 1) * falling
        prints.append(jnp.cumsum(jnp.concatenate([first[None], steps]), axis=0, dtype=jnp.uint32))
    return Corners(jnp.stack(prints), weights)


def hash_factors(d: int) -> np.ndarray:
    """[2 D] random odd numbers. A hash of coordinates is their sum, so multiplied, modulo 2³². That
    any two of a million vertices agree in both has a probability of 10⁻⁷."""
    return np.random.default_rng(0).integers(0, 2**31, (2, d + 1), np.uint32) * 2 + 1


class Table(NamedTuple):
    """A hash table with open addressing: slot -> some corner of the vertex there, or −1."""

    slots: Int[Array, "T"]
    prints: UInt32[Array, "2 M"]  # of all corners


def slot(prints: UInt32[Array, "2 M"], probe: Array, size: int) -> Int[Array, "M"]:
    """Where to look for a vertex at the `probe`-th attempt; the mixing is that of MurmurHash3."""
    x = prints[0] ^ (prints[1] + probe.astype(jnp.uint32) * np.uint32(0x9E3779B9))
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return ((x ^ (x >> 16)) & (size - 1)).astype(jnp.int32)


def make_table(prints: UInt32[Array, "2 M"]) -> tuple[Table, Int[Array, "M"]]:
    """The table of all vertices, and for each corner the one that stands for its vertex."""
    corners = jnp.arange(prints.shape[1], dtype=jnp.int32)
    size = 1 << (2 * len(corners) - 1).bit_length()

    def attempt(state: tuple) -> tuple:
        slots, owner, probe = state
        place = slot(prints, probe, size)
        wanted = (owner < 0) & (slots[place] < 0)
        slots = slots.at[jnp.where(wanted, place, size)].max(corners, mode="drop")
        there = slots[place]
        same = (there >= 0) & (prints[:, there] == prints).all(0)
        return slots, jnp.where((owner < 0) & same, there, owner), probe + 1

    start = jnp.full(size, -1, jnp.int32), jnp.full(len(corners), -1, jnp.int32), jnp.int32(0)
    slots, owner, _ = lax.while_loop(lambda state: (state[1] < 0).any(), attempt, start)
    return Table(slots, prints), owner


def look_up(table: Table, prints: UInt32[Array, "2 Q"]) -> Int[Array, "Q"]:
    """A corner of each vertex, or −1 where there is none."""
    absent, searching = -1, -2

    def attempt(state: tuple) -> tuple:
        found, probe = state
        there = table.slots[slot(prints, probe, len(table.slots))]
        same = (table.prints[:, there] == prints).all(0)
        now = jnp.where(there < 0, absent, jnp.where(same, there, searching))
        return jnp.where(found == searching, now, found), probe + 1

    start = jnp.full(prints.shape[1], searching, jnp.int32), jnp.int32(0)
    return lax.while_loop(lambda state: (state[0] == searching).any(), attempt, start)[0]


def directions(d: int) -> np.ndarray:
    """[D D]: a step along each direction of the lattice, in coordinates."""
    return 1 - (d + 1) * np.eye(d + 1, dtype=np.int32)


@partial(jax.jit, static_argnames="capacity")
def build(
    features: Float[Array, "N d"],
    capacity: int | None = None,
    vectors: Int[Array, "L D"] | None = None,
) -> Lattice:
    """The lattice around features in standard deviations, with room for `capacity` vertices: as
    many as there are points, or 16,384, if not given. D·N is always enough. vectors [L D], in
    coordinates: where the neighbours are, along the directions of the lattice if not given."""
    d, points = features.shape[1], len(features)
    capacity = min(max(points, 2**14) if capacity is None else capacity, (d + 1) * points)
    prints, weights = enclose(features)
    prints = prints.reshape(2, -1)
    table, owner = make_table(prints)
    corners = jnp.arange(len(owner), dtype=jnp.int32)
    number = jnp.cumsum(owner == corners, dtype=jnp.int32)
    count, vertex = number[-1], number[owner]
    place = jnp.where(owner == corners, number, capacity + 1)
    example = jnp.zeros(capacity + 1, jnp.int32).at[place].set(corners, mode="drop")

    # Blocks of vertices, as many as there are.
    block = min(capacity + 1, 4096)

    def neighbours(step: Array) -> Array:
        def find(i: Array, forward: Array) -> Array:
            start = jnp.minimum(i * block, capacity + 1 - block)
            rows = start + jnp.arange(block)
            there = look_up(table, prints[:, lax.dynamic_slice(example, (start,), (block,))] + step)
            exists = (there >= 0) & (rows > 0) & (rows <= count)
            found = jnp.where(exists, vertex[there], 0)
            return lax.dynamic_update_slice(forward, found, (start,))

        blocks = jnp.minimum(count, capacity) // block + 1
        forward = lax.fori_loop(0, blocks, find, jnp.zeros(capacity + 1, jnp.int32))
        rows = jnp.arange(capacity + 1, dtype=jnp.int32)
        back = jnp.zeros_like(forward).at[jnp.where(forward > 0, forward, capacity + 1)]
        return jnp.stack([forward, back.set(rows, mode="drop")])

    vectors = jnp.asarray(directions(d) if vectors is None else vectors).astype(jnp.uint32)
    steps = (vectors[:, None] * hash_factors(d)[None]).sum(-1, dtype=jnp.uint32)  # of the hashes
    links = lax.map(neighbours, steps[..., None])
    at_corners = vertex.reshape(d + 1, points)
    return Lattice(count, at_corners, weights, links, *splat_layout(at_corners, weights, capacity))


def splat_layout(
    vertex: Int[Array, "D N"], weights: Float[Array, "D N"], capacity: int
) -> tuple[Array, Array, Array]:
    """`Lattice.chunk_vertex`, `chunk_points` and `chunk_weights`."""
    vertex, point = by_vertex(vertex)
    weight = jnp.take_along_axis(weights, point, axis=1).ravel()
    vertex, point = vertex.ravel(), point.ravel()
    place = jnp.arange(len(vertex), dtype=jnp.int32)
    begins = vertex != jnp.roll(vertex, 1)
    begins = begins.at[0].set(True)
    start = lax.cummax(jnp.where(begins, place, 0))
    lane = (place - start) % CHUNK
    chunk = jnp.cumsum(lane == 0, dtype=jnp.int32) - 1
    size = len(vertex) // CHUNK + capacity
    at = jnp.where(chunk < size, lane * size + chunk, CHUNK * size)
    chunk_points = jnp.zeros(size * CHUNK, jnp.int32).at[at].set(point, mode="drop")
    chunk_weights = jnp.zeros(size * CHUNK, weights.dtype).at[at].set(weight, mode="drop")
    chunk_vertex = (
        jnp.zeros(size, jnp.int32).at[jnp.where(lane == 0, chunk, size)].set(vertex, mode="drop")
    )
    return chunk_vertex, chunk_points.reshape(CHUNK, size), chunk_weights.reshape(CHUNK, size)


def by_vertex(vertex: Int[Array, "D N"]) -> tuple[Int[Array, "D N"], Int[Array, "D N"]]:
    """The vertices of each corner in their order, and the points they belong to."""
    points = vertex.shape[1]
    bits = max(2, (points - 1).bit_length())
    first = vertex.min(1, keepdims=True)
    point = jnp.broadcast_to(jnp.arange(points, dtype=jnp.int32), vertex.shape)

    def packed() -> tuple[Array, Array]:
        both = ((vertex - first).astype(jnp.uint32) << bits) | point.astype(jnp.uint32)
        both = jnp.sort(both, axis=1)
        low = both & np.uint32((1 << bits) - 1)
        return (both >> bits).astype(jnp.int32) + first, low.astype(jnp.int32)

    # One number is sorted five times faster than two.
    fits = (vertex - first).max() < 1 << (32 - bits)
    return lax.cond(fits, packed, lambda: tuple(lax.sort((vertex, point), num_keys=1)))


def splat(lattice: Lattice, values: Float[Array, "N K"]) -> Float[Array, "R K"]:
    sums = weighted_rows(values, lattice.chunk_points, lattice.chunk_weights)
    rows = lattice.neighbours.shape[-1]
    return jnp.zeros((rows, values.shape[1]), values.dtype).at[lattice.chunk_vertex].add(sums)


def blur(lattice: Lattice, values: Float[Array, "R K"], *, reverse: bool = False) -> Array:
    def along(values: Array, neighbours: Array) -> tuple[Array, None]:
        forward, back = neighbours
        return values + 0.5 * (values[forward] + values[back]), None

    return lax.scan(along, values, lattice.neighbours, reverse=reverse)[0]


def slice_at(lattice: Lattice, values: Float[Array, "R K"]) -> Float[Array, "N K"]:
    return weighted_rows(values, lattice.corners, lattice.weights)


def weighted_rows(
    values: Float[Array, "V K"], rows: Int[Array, "R S"], weights: Float[Array, "R S"]
) -> Float[Array, "S K"]:
    """Σ_r weights[r] · values[rows[r]]. As separate terms, for XLA:CPU makes vector code of these
    and, of a gather of all, code forty times slower."""
    terms = zip(rows, weights, strict=True)
    return reduce(
        jnp.add, [w[:, None] * values.at[r].get(mode="promise_in_bounds") for r, w in terms]
    )


def gain(d: int) -> float:
    """What makes a blurred impulse integrate to (2π)^(d/2), as exp(−½ |f|²) does.

    Blurring doubles the sum D times, and there is a vertex for each √D⁻¹·1.5^(d/2) of volume.
    """
    return (2 * np.pi / 1.5) ** (d / 2) * np.sqrt(d + 1) / 2 ** (d + 1)


@jax.jit
def apply(lattice: Lattice, values: Float[Array, "N K"]) -> Float[Array, "N K"]:
    """K v. NaN where the lattice has more vertices than there is room for."""
    return _apply(lattice, values)


@jax.custom_vjp
def _apply(lattice: Lattice, values: Array) -> Array:
    return _filter(lattice, values, reverse=False)


def _filter(lattice: Lattice, values: Array, *, reverse: bool) -> Array:
    def filtered(capacity: int) -> Array:
        some = with_capacity(lattice, capacity)
        blurred = blur(some, splat(some, values), reverse=reverse)
        return gain(len(lattice.neighbours) - 1) * slice_at(some, blurred)

    # Often far fewer vertices are there than there is room for.
    capacity = lattice.neighbours.shape[-1] - 1
    sizes = sorted({max(1, capacity >> halvings) for halvings in range(5)})
    branches = [partial(filtered, size) for size in sizes]
    branches.append(lambda: jnp.full_like(values, jnp.nan))
    return lax.switch((lattice.count > jnp.array(sizes)).sum(), branches)


def with_capacity(lattice: Lattice, capacity: int) -> Lattice:
    """The same lattice in smaller arrays."""
    chunks = lattice.corners.size // CHUNK + capacity
    return lattice._replace(
        neighbours=lattice.neighbours[..., : capacity + 1],
        chunk_vertex=lattice.chunk_vertex[:chunks],
        chunk_points=lattice.chunk_points[:, :chunks],
        chunk_weights=lattice.chunk_weights[:, :chunks],
    )


_apply.defvjp(
    lambda lattice, values: (_apply(lattice, values), lattice),
    lambda lattice, g: (None, _filter(lattice, g, reverse=True)),
)
