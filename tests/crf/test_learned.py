from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow_but

from jaxseg.crf import exact, learned, permutohedral
from jaxseg.crf.mean_field import Pairwise, mean_field

build = jax.jit(learned.build, static_argnums=(1, 2))
apply = jax.jit(learned.apply)
total = jax.jit(learned.total)
steps = jax.jit(learned.mean_field_steps)


def points(n: int, d: int, reach: float = 2.5, seed: int = 0) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), (n, d), maxval=reach)


def normal(*shape: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def dense(lattice: permutohedral.Lattice, weights: jax.Array) -> np.ndarray:
    """[V+1 V+1 K F] of the convolution, entry by entry."""
    rows, half = lattice.neighbours.shape[-1], len(weights) // 2
    matrix = np.zeros((rows, rows, *weights.shape[1:]))
    for row in range(1, int(lattice.count) + 1):
        matrix[row, row] += weights[half]
        for i, (forward, back) in enumerate(np.asarray(lattice.neighbours)[..., row]):
            matrix[row, forward] += weights[half + 1 + i]
            matrix[row, back] += weights[half - 1 - i]
    matrix[:, 0] = 0
    return matrix


@pytest.mark.parametrize(
    ("d", "size"), [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (5, 1), (8, 1)]
)
def test_vertices_of_a_neighbourhood(d, size):
    vectors = learned.neighbourhood(d, size)
    assert len(vectors) == (size + 1) ** (d + 1) - size ** (d + 1)
    assert len(np.unique(vectors, axis=0)) == len(vectors)
    np.testing.assert_array_equal(vectors, -vectors[::-1])
    assert not vectors[len(vectors) // 2].any()


@pytest.mark.parametrize(("d", "size"), [(1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2)])
def test_a_neighbourhood_is_what_steps_reach(d, size):
    """Two vertices share a simplex if their coordinates, all congruent, differ by D at most."""
    side = d + 1
    every = product(range(-size * side, size * side + 1), repeat=side)
    near = [c for c in every if sum(c) == 0 and len({x % side for x in c}) == 1]
    steps = {c for c in near if max(c) - min(c) <= side}
    reached = {(0,) * side}
    for _ in range(size):
        reached = {tuple(np.add(c, step)) for c in reached for step in steps}
    assert {tuple(c) for c in learned.neighbourhood(d, size)} == reached


def test_sizes_out_of_range():
    for size in 0, 4:
        with pytest.raises(ValueError, match=f"size is {size}, expected 1, 2 or 3"):
            learned.build(points(4, 2), size)


@pytest.mark.parametrize(("d", "size"), slow_but(1, [(2, 1), (2, 3), (3, 2), (5, 1)]))
def test_neighbours_are_the_vertices_there(d, size):
    """Coordinates of the vertices, worked out anew from the features, and all pairs compared."""
    features = points(40, d)
    lattice = build(features, size, 40 * (d + 1))
    side, count, rows = d + 1, int(lattice.count), lattice.neighbours.shape[-1]
    elevated = np.asarray(features) @ permutohedral.embedding(d).T * side * learned.spacing(size)
    coordinates = np.full((rows, side), 10**6)
    for corners, x in zip(np.asarray(lattice.corners).T, elevated, strict=True):
        remainder = side * np.round(x / side).astype(int)
        order = np.argsort(np.argsort(-(x - remainder), kind="stable")) + remainder.sum() // side
        remainder += side * ((order < 0).astype(int) - (order > d))
        order %= side
        for r, corner in enumerate(corners):
            coordinates[corner] = remainder + r - side * (order > d - r)
    assert (coordinates[1 : count + 1].sum(1) == 0).all()
    vectors = learned.neighbourhood(d, size)[len(lattice.neighbours) + 1 :]
    row_of = {tuple(c): row for row, c in enumerate(coordinates[1 : count + 1], 1)}
    for vector, both in zip(vectors, np.asarray(lattice.neighbours), strict=True):
        for sign, found in zip((1, -1), both, strict=True):
            there = [row_of.get(tuple(c + sign * vector), 0) for c in coordinates[1 : count + 1]]
            np.testing.assert_array_equal(found, [0, *there, *[0] * (rows - 1 - count)])


def test_gaussian_weights_by_hand():
    """d = 1, where a step along one direction is one back along the other: (1 + e)ˢ (1 + 1/e)ˢ."""
    kernel = {1: [1, 2, 1], 2: [1, 4, 6, 4, 1], 3: [1, 6, 15, 20, 15, 6, 1]}
    for size, expected in kernel.items():
        weights = learned.gaussian_weights(1, size)[:, 0]
        np.testing.assert_allclose(weights / weights[0], expected, rtol=1e-6)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_gaussian_weights_have_unit_variance_and_the_right_sum(d, size):
    """In feature space a coordinate is √1.5 / D / spacing long; there are √D / 1.5^(d/2) ·
    spacing^−d … vertices by volume."""
    vectors, weights = learned.neighbourhood(d, size), learned.gaussian_weights(d, size)[:, 0]
    offsets = vectors * np.sqrt(1.5) / (d + 1) / learned.spacing(size)
    blur = (weights * (offsets**2).sum(1)).sum() / weights.sum() / d
    splat_and_slice = 1.5 / 6 / learned.spacing(size) ** 2
    np.testing.assert_allclose(blur + splat_and_slice, 1, rtol=1e-5)
    volume = 1.5 ** (d / 2) / np.sqrt(d + 1) / learned.spacing(size) ** d
    np.testing.assert_allclose(weights.sum() * volume, (2 * np.pi) ** (d / 2), rtol=1e-5)


@pytest.mark.slow
def test_size_2_is_the_blur_of_a_lattice_without_gaps():
    """Points everywhere, and read in the middle: what lies beyond the border is not there."""
    features = jnp.stack(jnp.meshgrid(*[jnp.arange(-7, 7.01, 0.4)] * 2), -1).reshape(-1, 2)
    values = normal(len(features), 3)
    ours = apply(build(features, 2), learned.gaussian_weights(2, 2), values)
    blurred = jax.jit(lambda f, v: permutohedral.gaussian(f)(v))(features, values)
    middle = jnp.abs(features).max(1) < 3
    np.testing.assert_allclose(ours[middle], blurred[middle], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("d", "size", "error"),
    slow_but(1, [(2, 1, 0.03), (2, 2, 0.02), (2, 3, 0.015), (3, 1, 0.06)]),
)
def test_gaussian_weights_make_nearly_the_exact_filter(d, size, error):
    features, values = points(300, d, 4.0), jax.random.uniform(jax.random.key(2), (300, 2))
    ours = apply(build(features, size), learned.gaussian_weights(d, size), values)
    truth = exact.gaussian(features)(values)
    assert jnp.linalg.norm(ours - truth) < error * jnp.linalg.norm(truth)


@pytest.mark.parametrize(
    ("d", "size", "shape"),
    slow_but(1, [(2, 2, (3, 2)), (2, 2, (1,)), (3, 1, (3,)), (3, 1, (3, 2))]),
)
def test_convolution_is_its_matrix(d, size, shape, monkeypatch):
    monkeypatch.setattr(learned, "BLOCK", 7)  # so that the blocks overlap
    lattice = build(points(20, d), size, 20 * (d + 1))
    rows = jnp.arange(lattice.neighbours.shape[-1])[:, None]
    there = (rows > 0) & (rows <= lattice.count)
    weights = normal(len(learned.neighbourhood(d, size)), *shape)
    values = jnp.where(there, normal(len(rows), 3), 0)
    matrix = dense(lattice, weights)
    if len(shape) == 1:  # no mixing: a diagonal matrix for each pair of vertices
        matrix = matrix[..., None] * np.eye(3)
    expected = np.einsum("ijkf,jk->if", matrix, values)
    assert np.abs(expected).max() > 1
    found = jax.jit(learned.convolve)(lattice, weights, values)
    np.testing.assert_allclose(found, expected, atol=2e-5)

    g = jnp.where(there, normal(*expected.shape, seed=3), 0)
    some = normal(*weights.shape, seed=4)
    gradient = jax.jit(learned.weights_gradient)(lattice, weights, values, g)
    linear = jnp.vdot(g, learned.convolve(lattice, some, values))
    np.testing.assert_allclose(jnp.vdot(gradient, some), linear, rtol=1e-4)


@pytest.mark.parametrize("shape", slow_but(1, [((3, 2),), ((1,),), ((3,),)]))
def test_gradients(shape):
    """Linear in weights and in values: differences of any size are exact but for rounding."""
    lattice = build(points(60, 3), 1, 200)
    weights, values = normal(15, *shape), normal(60, 3, seed=2)
    out = apply(lattice, weights, values)
    g = normal(*out.shape, seed=3)

    @jax.jit
    def loss(w, v):
        return jnp.vdot(g, learned.apply(lattice, w, v))

    dw, dv = jax.jit(jax.grad(loss, (0, 1)))(weights, values)
    step_w, step_v = normal(*weights.shape, seed=4), normal(60, 3, seed=5)
    for found, plus, minus in (
        (jnp.vdot(dw, step_w), (weights + step_w, values), (weights - step_w, values)),
        (jnp.vdot(dv, step_v), (weights, values + step_v), (weights, values - step_v)),
    ):
        np.testing.assert_allclose(found, (loss(*plus) - loss(*minus)) / 2, rtol=1e-3, atol=1e-3)
    # ⟨g, K v⟩ = ⟨Kᵀ g, v⟩ = ⟨dw, w⟩
    np.testing.assert_allclose(jnp.vdot(dv, values), jnp.vdot(g, out), rtol=1e-4)
    np.testing.assert_allclose(jnp.vdot(dw, weights), jnp.vdot(g, out), rtol=1e-4)


def test_jit_is_eager():
    lattice, weights, values = build(points(30, 2), 1, 90), normal(7, 3, 2), normal(30, 3, seed=2)
    eager = learned.apply(lattice, weights, values)
    np.testing.assert_allclose(apply(lattice, weights, values), eager, rtol=1e-4, atol=2e-5)


def test_joint_upsampling():
    """Read at points without values, as the exact filter would be."""
    features = points(300, 2, 3.0)
    values = jax.random.uniform(jax.random.key(1), (200, 2))
    lattice = build(features, 2)
    ours = apply(lattice, learned.gaussian_weights(2, 2), values)
    truth = exact.gaussian(features)(jnp.pad(values, ((0, 100), (0, 0))))
    assert ours.shape == (300, 2)
    assert jnp.linalg.norm(ours[200:] - truth[200:]) < 0.03 * jnp.linalg.norm(truth[200:])


def test_refusals():
    features, values = points(50, 3), normal(50, 2)
    weights = learned.gaussian_weights(3, 1)
    assert jnp.isnan(apply(build(features, 1, 3), weights, values)).all()
    with pytest.raises(ValueError, match="15 weights, expected 65"):
        learned.apply(build(features, 2), weights, values)
    with pytest.raises(TypeError, match="no gradient with respect to its features"):
        jax.grad(lambda f: apply(learned.build(f), weights, values).sum())(features)


def terms(size: int) -> list[learned.Term]:
    kernels = [learned.gaussian_weights(d, size) for d in (2, 3)]
    return [learned.Term(kernel, w) for kernel, w in zip(kernels, (3.0, 20.0), strict=True)]


@pytest.mark.parametrize(("size", "count", "error"), slow_but(1, [(1, 1, 0.02), (2, 2, 0.017)]))
def test_steps_at_first_are_mean_field(size, count, error):
    """Marginals of the Gaussian CRF with the exact filter, on average over points and labels."""
    features = [points(200, 2, 4.0, seed=5), points(200, 3, 4.0, seed=6)]
    logits = normal(200, 4) + jax.nn.one_hot(features[1][:, 0].astype(int), 4)

    def normalised(filter, values):
        scale = filter(jnp.ones((200, 1))) ** -0.5
        return scale * filter(scale * values)

    filters = [partial(normalised, exact.gaussian(f)) for f in features]
    pairs = [Pairwise(f, term.compatibility) for f, term in zip(filters, terms(1), strict=True)]
    truth = jax.nn.softmax(mean_field(logits, pairs, count))
    assert jnp.abs(truth - jax.nn.softmax(logits)).mean() > 0.12  # of 0.13 and 0.24
    lattices = [build(f, size, 800) for f in features]
    found = steps(logits, lattices, [terms(size)] * count)
    assert jnp.abs(jax.nn.softmax(found) - truth).mean() < error


def test_steps_that_share_filters_and_that_do_not():
    lattice, logits = build(points(50, 3), 1, 150), normal(50, 3)
    first, second = (learned.Term(normal(15, 1, seed=seed), 2.0) for seed in (2, 3))
    none = learned.Term(jnp.zeros((15, 1)), 2.0)
    scale = total(lattice) ** -0.5

    def learned_filter(values):
        return scale * apply(lattice, first.weights, scale * values)

    same = partial(np.testing.assert_allclose, atol=1e-4)
    for count in 1, 2:
        found = steps(logits, [lattice], [[first]] * count)
        same(found, mean_field(logits, [Pairwise(learned_filter, 2.0)], count))
    same(steps(logits, [lattice], [[none], [second]]), steps(logits, [lattice], [[second]]))
    loose = steps(logits, [lattice], [[first], [second]])
    assert jnp.abs(loose - steps(logits, [lattice], [[second]])).max() > 0.01
    assert jnp.abs(loose - found).max() > 0.01


def test_compatibility_and_filters_of_labels():
    """By hand: labels that nobody's compatibility mixes, each filtered with its own weights."""
    features, logits = points(30, 2), normal(30, 3)
    lattice = build(features, 1, 100)
    weights, compatibility = normal(7, 3), normal(3, 3, seed=4)
    found = steps(logits, [lattice], [[learned.Term(weights, compatibility)]])
    scale = total(lattice) ** -0.5
    mixed = scale * (jax.nn.softmax(logits) @ compatibility.T)
    columns = [apply(lattice, weights[:, k : k + 1], mixed[:, k : k + 1]) for k in range(3)]
    expected = logits - scale * jnp.concatenate(columns, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
