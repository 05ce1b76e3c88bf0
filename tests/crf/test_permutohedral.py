"""The lattice against explicit coordinates, the exact filter, and pydensecrf."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_references import PHOTOS, agreement, load, photo, total_variation

from jaxseg.crf import exact, permutohedral, spatial
from jaxseg.crf.energies import bilateral_features, grid_features
from jaxseg.crf.filtering import normalized
from jaxseg.crf.mean_field import Pairwise, mean_field

RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def enclosing(features):
    """Corners [N D D] in coordinates and weights [N D], in float64 and as Adams et al. 2010 say it:
    the nearest point of multiples of D, and from there in the order of the remainders."""
    d = features.shape[1]
    side = d + 1
    y = side * features.astype(np.float64) @ permutohedral.embedding(d).T
    base = side * np.round(y / side)
    rank = np.argsort(np.argsort(base - y, axis=1), axis=1) + base.sum(1, keepdims=True) / side
    over, under = rank > d, rank < 0
    base += side * (under.astype(int) - over)
    rank = (rank + side * (under.astype(int) - over)).astype(int)
    remainder = np.arange(side)[:, None]
    canonical = np.where(np.arange(side) <= d - remainder, remainder, remainder - side)
    corners = (base[:, None] + canonical[:, rank].swapaxes(0, 1)).astype(int)
    # Such that the corners, so weighted, are the point.
    system = np.concatenate([corners.swapaxes(1, 2), np.ones((len(y), 1, side))], axis=1)
    target = np.concatenate([y, np.ones((len(y), 1))], axis=1)
    weights = np.stack([np.linalg.lstsq(a, b)[0] for a, b in zip(system, target, strict=True)])
    return corners, weights


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
def test_embedding(d):
    """Columns are orthogonal, of one length, and sum to 0: distances stay, and 2D²/3 is 1."""
    matrix = permutohedral.embedding(d)
    np.testing.assert_allclose(matrix.T @ matrix, 2 / 3 * np.eye(d), atol=1e-12)
    np.testing.assert_allclose(matrix.sum(0), 0, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
def test_vertices_weights_and_neighbours(d):
    features = (2 * RNG.normal(size=(150, d)) + 30).astype(np.float32)
    features = np.concatenate([features, features[:20]])
    corners, weights = enclosing(features)
    assert (corners.sum(-1) == 0).all()
    assert (corners % (d + 1) == np.arange(d + 1)[:, None]).all()
    assert weights.min() > -1e-9
    lattice = permutohedral.build(features, capacity=200 * (d + 1))
    np.testing.assert_allclose(lattice.weights.T, weights, atol=1e-4)
    vertices, which = np.unique(corners.reshape(-1, d + 1), axis=0, return_inverse=True)
    assert lattice.count == len(vertices)
    # One to one: the lattice's row of each vertex.
    rows = np.zeros(len(vertices), int)
    rows[which.ravel()] = np.asarray(lattice.corners).T.ravel()
    np.testing.assert_array_equal(rows[which.ravel()], np.asarray(lattice.corners).T.ravel())
    np.testing.assert_array_equal(np.sort(rows), np.arange(1, len(vertices) + 1))
    row_of = {tuple(v): row for v, row in zip(vertices.tolist(), rows, strict=True)}
    neighbours = np.asarray(lattice.neighbours)
    some = 0
    for vertex, row in row_of.items():
        for direction, step in enumerate(permutohedral.directions(d)):
            there = [row_of.get(tuple(np.add(vertex, s)), 0) for s in (step, -step)]
            assert neighbours[direction, :, row].tolist() == there
            some += sum(r > 0 for r in there)
    assert some > 0
    assert not neighbours[..., 0].any()


@pytest.mark.parametrize(("d", "tolerance"), [(1, 0.06), (2, 0.06), (3, 0.1), (5, 0.2), (8, 0.3)])
def test_nearly_the_exact_filter(d, tolerance):
    """Of points that are close: where vertices have no neighbours, the blur ends."""
    features, values = RNG.random((3000, d)).astype(np.float32) * 2, random(3000, 2) + 1
    expected = exact.gaussian(features)(values)
    found = permutohedral.gaussian(features, 3000 * (d + 1))(values)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < tolerance


def test_too_little_room_gives_nan():
    features, values = random(50, 3), random(50, 2)
    count = int(permutohedral.build(features).count)
    ample = permutohedral.gaussian(features)(values)
    enough = permutohedral.gaussian(features, count)(values)
    np.testing.assert_allclose(enough, ample, rtol=1e-5, atol=1e-6)
    for capacity in (count - 1, 1):
        assert np.isnan(permutohedral.gaussian(features, capacity)(values)).all()
    g = jax.grad(lambda v: permutohedral.gaussian(features, count - 1)(v).sum())(values)
    assert np.isnan(g).all()


def test_features_have_no_gradient():
    features, values = random(10, 2), random(10, 1)

    def total(features):
        return permutohedral.gaussian(features)(values).sum()

    with pytest.raises(TypeError, match="take the backend nystrom or exact"):
        jax.grad(total)(features)
    slope = jax.jit(jax.grad(lambda v: (permutohedral.gaussian(features)(v) ** 2).sum()))(values)
    assert np.isfinite(slope).all()
    stopped = jax.grad(lambda f: total(jax.lax.stop_gradient(f)))(features)
    np.testing.assert_array_equal(stopped, 0)


def infer(iterations, normalization, near, image, logits, sigma, colour_sigma, compatibility):
    """near: of the image, the filter with a standard deviation of 3 pixels."""

    def scaled(filter, d):
        if normalization != "none":
            return normalized(filter, len(logits), normalization)
        gain = 1 / (1 + 2.0**-d) / permutohedral.gain(d)  # pydensecrf's, with ours
        return lambda values: gain * filter(values)

    near = scaled(near(image), 2)
    alike = scaled(permutohedral.gaussian(bilateral_features(image, sigma, colour_sigma)), 5)
    terms = [Pairwise(near, 3 * compatibility), Pairwise(alike, 10 * compatibility)]
    return jax.nn.softmax(mean_field(logits, terms, iterations))


def by_lattice(image):
    return permutohedral.gaussian(grid_features(image.shape[:2], (3.0, 3.0)))


def exactly(image):
    return spatial.gaussian(image.shape[:2], (3.0, 3.0))


@pytest.mark.slow
@pytest.mark.parametrize(("near", "least"), [(by_lattice, 0.99999), (exactly, 0.998)])
def test_photographs(fixtures, near, least):
    """10 iterations: as pydensecrf, which has two lattices, also where the spatial kernel is exact;
    and no further from exact marginals."""
    published, reference = (load(fixtures, name) for name in ("pydensecrf_photos", "exact_photos"))
    run = jax.jit(partial(infer, 10, "symmetric", near))
    agreements, variations = [], []
    for name in PHOTOS:
        marginals = np.asarray(run(*photo(fixtures, name), jnp.ones(1)))
        assert total_variation(marginals, published, f"{name}_it10") < 0.002, name
        agreements.append(agreement(marginals, published, f"{name}_it10"))
        variations.append(total_variation(marginals, reference, f"{name}_it10"))
    print(agreements, variations)
    assert min(agreements) > least
    assert np.mean(agreements) > 0.999
    assert np.mean(variations) < 0.0135


@pytest.mark.parametrize(
    ("iterations", "variant"),
    [
        (1, "symmetric"),
        *(
            pytest.param(5, name, marks=pytest.mark.slow)
            for name in ("before", "after", "none", "matrix")
        ),
    ],
)
def test_one_photograph(fixtures, iterations, variant):
    published = load(fixtures, "pydensecrf_photos")
    key = f"astronaut_s80_c13_it{iterations}" + f"_{variant}" * (variant != "symmetric")
    normalization = "symmetric" if variant == "matrix" else variant
    compatibility = published["mu_sym"] if variant == "matrix" else np.ones(1, np.float32)
    run = jax.jit(partial(infer, iterations, normalization, by_lattice))
    marginals = np.asarray(run(*photo(fixtures, key), compatibility))
    assert agreement(marginals, published, key) > 0.99999
    assert total_variation(marginals, published, key) < 1e-4
