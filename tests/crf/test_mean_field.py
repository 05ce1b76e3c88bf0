"""Mean field against loops in numpy, and its gradient against autodiff of the plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow_but

from jaxseg.crf import filtering, spatial
from jaxseg.crf.energies import bilateral_features, grid_features
from jaxseg.crf.filtering import normalized
from jaxseg.crf.mean_field import Pairwise, cost, mean_field

RNG = np.random.default_rng(0)
BACKENDS = ["permutohedral", "nystrom", "exact"]


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def by_matrix(kernel):
    return lambda values: jnp.matmul(kernel, values, precision="highest")


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def in_numpy(logits, pairs, iterations, damping=0.0):
    """pairs: (kernel [N N], cost [K K]), point by point and label by label."""
    current, (points, labels) = logits.astype(np.float64), logits.shape
    for _ in range(iterations):
        q, costs = softmax(current), np.zeros_like(current)
        for kernel, compatibility in pairs:
            for i, j in np.ndindex(points, points):
                for k in range(labels):
                    costs[i, k] += kernel[i, j] * (compatibility[k] * q[j]).sum()
        current = damping * current + (1 - damping) * (logits - costs)
    return current


def unrolled(logits, terms, iterations, damping):
    current = logits
    for _ in range(iterations):
        updated = logits - cost(jax.nn.softmax(current), terms)
        current = damping * current + (1 - damping) * updated
    return current


def test_two_points_by_hand():
    """One iteration of Potts' model: each takes the other's label over."""
    kernel = jnp.array([[0.0, 0.5], [0.5, 0.0]])
    logits = jnp.log(jnp.array([[0.8, 0.2], [0.5, 0.5]]))
    found = mean_field(logits, [Pairwise(by_matrix(kernel), 4.0)], 1)
    np.testing.assert_allclose(found, logits + np.array([[1, 1], [1.6, 0.4]]), rtol=1e-6)


@pytest.mark.parametrize("damping", [0.0, 0.25])
def test_against_numpy(damping):
    logits, kernels = random(5, 3), np.exp(random(2, 5, 5))
    matrix, weights = random(3, 3), np.array([1.0, 0.5, 2.0], np.float32)
    terms = [Pairwise(by_matrix(kernels[0]), matrix), Pairwise(by_matrix(kernels[1]), weights)]
    found = mean_field(logits, terms, 3, damping=damping)
    pairs = [(kernels[0], matrix), (kernels[1], -np.diag(weights))]
    np.testing.assert_allclose(found, in_numpy(logits, pairs, 3, damping), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("iterations", "damping"), slow_but(1, [(4, 0.3), (1, 0.0), (4, 0.0)]))
def test_gradient_is_that_of_the_plain_loop(iterations, damping):
    size, image = (3, 4), random(3, 4, 3)
    variables = {"logits": random(12, 3), "image": image, "sigma": jnp.float32(1.5)}
    variables |= {"number": jnp.float32(0.7), "weights": random(3), "matrix": random(3, 3)}
    given = random(12, 3)

    def gradient(infer):
        @jax.jit
        @jax.grad
        def of(v):
            near = normalized(spatial.gaussian(size, (v["sigma"], v["sigma"])), 12)
            alike = filtering.gaussian(bilateral_features(v["image"], v["sigma"], 0.8), "exact")
            alike = normalized(alike, 12, self_message=False)
            terms = [Pairwise(near, v["number"]), Pairwise(alike, v["matrix"])]
            terms.append(Pairwise(near, v["weights"]))
            return (given * infer(v["logits"], terms)).sum()

        return of(variables)

    found = gradient(lambda *x: mean_field(*x, iterations, damping=damping))
    expected = gradient(lambda *x: unrolled(*x, iterations, damping))
    for name, g in expected.items():
        np.testing.assert_allclose(found[name], g, rtol=2e-4, atol=2e-5 * np.abs(g).max())
        assert np.abs(g).max() > 1e-3


def test_gradient_through_the_lattice():
    """It is that of the lattice's own matrix."""
    features, logits, given = 0.5 * random(30, 3), random(30, 2), random(30, 2)
    kernel = filtering.gaussian(features)(jnp.eye(30))

    @jax.jit
    @jax.grad
    def found(variables):
        term = Pairwise(filtering.gaussian(features), variables[1])
        return (given * mean_field(variables[0], [term], 3)).sum()

    @jax.jit
    @jax.grad
    def expected(variables):
        term = Pairwise(by_matrix(kernel), variables[1])
        return (given * unrolled(variables[0], [term], 3, 0.0)).sum()

    variables = logits, jnp.array([0.02, 0.05])
    for a, b in zip(found(variables), expected(variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_damping_keeps_the_fixed_point():
    """Costs that swing for ever without it settle with it, where an iteration changes nothing."""
    kernel = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    term = Pairwise(by_matrix(kernel), -6.0)  # these two want to differ, and begin alike
    logits = jnp.array([[0.3, 0.0], [0.2, 0.0]])
    swinging = [jax.nn.softmax(mean_field(logits, [term], t))[0, 0] for t in (10, 11)]
    assert abs(swinging[0] - swinging[1]) > 0.5
    settled = mean_field(logits, [term], 200, damping=0.5)
    again = logits - cost(jax.nn.softmax(settled), [term])
    np.testing.assert_allclose(settled, again, atol=1e-4)


def test_a_batch_is_its_pictures():
    logits, image = random(2, 12, 3), random(2, 3, 4, 3)

    def infer(logits, image):
        near = normalized(spatial.gaussian((3, 4), (1.0, 1.0)), 12)
        alike = normalized(filtering.gaussian(bilateral_features(image, 2.0, 1.0), "exact"), 12)
        return mean_field(logits, [Pairwise(near, 1.0), Pairwise(alike, 2.0)], 3)

    one_by_one = [infer(*both) for both in zip(logits, image, strict=True)]
    together = jax.jit(jax.vmap(infer))(logits, image)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_volumes(backend):
    """3-D, with one channel: a noisy half of a volume becomes clean; exactly, as in numpy."""
    size = (4, 5, 6)
    inside = np.broadcast_to(np.arange(6) < 3, size).astype(np.float32)
    noise = RNG.random(size) < 0.1
    labels = np.where(noise, 1 - inside, inside).astype(np.int32).ravel()
    logits = np.log(np.where(labels[:, None] == np.arange(2), 0.7, 0.3)).astype(np.float32)
    features = grid_features(size, (2.0, 2.0, 2.0), inside[..., None], 0.5)
    filter = filtering.gaussian(
        features, backend, **{"nystrom": {"landmarks": 60}}.get(backend, {})
    )
    found = jax.nn.softmax(mean_field(logits, [Pairwise(normalized(filter, 120), 3.0)], 5))
    np.testing.assert_array_equal(found.argmax(1), inside.ravel())
    if backend == "exact":
        f = np.asarray(features)
        kernel = np.exp(-0.5 * ((f[:, None] - f[None]) ** 2).sum(-1))
        kernel /= np.sqrt(np.outer(kernel.sum(0), kernel.sum(0)))
        current = logits
        for _ in range(5):
            current = logits + 3 * kernel @ softmax(current)
        np.testing.assert_allclose(found, softmax(current), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_pixel(backend):
    """It hears itself alone."""
    features = bilateral_features(np.full((1, 1, 3), 90, np.float32), 80.0, 13.0)
    filter = normalized(filtering.gaussian(features, backend), 1)
    logits = jnp.array([[1.0, 0.0, -1.0]])
    found = mean_field(logits, [Pairwise(filter, 2.0)], 1)
    np.testing.assert_allclose(found, logits + 2 * jax.nn.softmax(logits), rtol=1e-5)
    silent = mean_field(logits, [Pairwise(normalized(lambda v: v, 1, self_message=False), 2.0)], 3)
    np.testing.assert_allclose(silent, logits, rtol=1e-6)


@pytest.mark.parametrize("backend", ["nystrom", "exact"])
def test_one_colour(backend):
    """Then colours say nothing, and the gradient to them is 0."""
    logits = random(99, 2)

    def infer(image):
        features = bilateral_features(image, 3.0, 10.0)
        filter = filtering.gaussian(
            features, backend, **{"nystrom": {"landmarks": 60}}.get(backend, {})
        )
        return mean_field(logits, [Pairwise(normalized(filter, 99), 3.0)], 3)

    image = np.full((9, 11, 3), 127, np.float32)
    near = spatial.gaussian((9, 11), (3.0, 3.0))
    expected = mean_field(logits, [Pairwise(normalized(near, 99), 3.0)], 3)
    found, slope = jax.jit(jax.value_and_grad(lambda image: (infer(image) ** 2).sum()))(image)
    np.testing.assert_allclose(found, (expected**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(slope, 0, atol=1e-5)


def test_one_label_is_certain():
    found = mean_field(random(4, 1), [Pairwise(by_matrix(jnp.eye(4)), 1.0)], 2)
    np.testing.assert_array_equal(jax.nn.softmax(found), 1)


@pytest.mark.parametrize("wrong", [dict(iterations=0), dict(damping=1.0), dict(damping=-0.1)])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        mean_field(random(4, 2), [Pairwise(by_matrix(jnp.eye(4)), 1.0)], **wrong)
