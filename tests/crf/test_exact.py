"""The exact backend, and mean field with it, against numbers in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_references import NORMALIZATIONS, load
from networks import compiled_once

from jaxseg.crf import exact, spatial
from jaxseg.crf.energies import bilateral_features
from jaxseg.crf.filtering import normalized
from jaxseg.crf.mean_field import Pairwise, mean_field

ITERATIONS = (1, 5, 10)


def inputs(fixtures, normalization, compatibility, dtype):
    arrays = load(fixtures, "exact_tiny")
    values = {name: arrays[name] for name in ("image", "logits")}
    values |= {"sxyg": arrays["sxy_gauss"], "sxyb": arrays["sxy_bilat"], "srgb": arrays["srgb"]}
    values |= dict(zip(("w1", "w2"), arrays[f"w_{normalization}"], strict=True))
    one = np.eye(5)
    full = {name: arrays[f"{name}_full"] for name in ("mu", "W1", "W2")}
    values |= full if compatibility == "full" else {"mu": -one, "W1": one, "W2": one}
    return {name: jnp.asarray(value, dtype) for name, value in values.items()}


def inferred(values, normalization, iterations, *, self_message=True):
    """Logits of Q [H W K]."""
    logits, size = values["logits"].reshape(-1, 5), values["image"].shape[:2]
    near = spatial.gaussian(size, (values["sxyg"], values["sxyg"]))
    alike = exact.gaussian(bilateral_features(values["image"], values["sxyb"], values["srgb"]))
    near, alike = (
        normalized(filter, len(logits), normalization, self_message=self_message)
        for filter in (near, alike)
    )
    w1, w2, mu = values["w1"], values["w2"], values["mu"]
    matmul = partial(jnp.matmul, precision="highest")
    terms = [
        Pairwise(near, w1 * matmul(mu, values["W1"])),
        Pairwise(alike, w2 * matmul(mu, values["W2"])),
    ]
    return mean_field(logits, terms, iterations).reshape(values["logits"].shape)


# With strong weights, full matrices and 10 iterations rounding grows, which costs float32 a digit.
@pytest.mark.parametrize("self_message", [True, False], ids=["self", "noself"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_marginals(fixtures, normalization, self_message):
    reference = load(fixtures, "exact_tiny")

    @compiled_once
    def marginals(values):
        run = partial(inferred, values, normalization, self_message=self_message)
        return [jax.nn.softmax(run(t)) for t in ITERATIONS]

    for dtype in (jnp.float32, jnp.float64):
        for compatibility in ("potts", "full"):
            with jax.enable_x64(dtype == jnp.float64):
                found = marginals(inputs(fixtures, normalization, compatibility, dtype))
            for t, q in zip(ITERATIONS, found, strict=True):
                heard = "self" if self_message else "noself"
                expected = reference[f"Q_{normalization}_{compatibility}_{heard}_{t}"]
                single = (
                    1e-6 if (compatibility, t) <= ("full", 1) or compatibility == "potts" else 1e-5
                )
                tolerance = single if dtype == jnp.float32 else 1e-12
                assert q.dtype == dtype
                assert np.abs(np.asarray(q) - expected).max() < tolerance, (dtype, compatibility, t)


@pytest.mark.parametrize(
    ("normalization", "iterations"),
    [
        ("symmetric", 5),
        ("after", 5),
        pytest.param("none", 5, marks=pytest.mark.slow),
        pytest.param("before", 5, marks=pytest.mark.slow),
        pytest.param("symmetric", 1, marks=pytest.mark.slow),
        pytest.param("symmetric", 10, marks=pytest.mark.slow),
    ],
)
def test_gradients(fixtures, normalization, iterations):
    """Of all that is in the energy, for two losses."""
    reference = load(fixtures, "exact_tiny_grads")

    @compiled_once
    @jax.jacrev
    def gradients(values):
        logits = inferred(values, normalization, iterations)
        lin = (jnp.asarray(reference["R"], logits.dtype) * jax.nn.softmax(logits)).sum()
        chosen = jnp.take_along_axis(logits, reference["labels"][..., None], axis=-1)[..., 0]
        return {"lin": lin, "nll": (jax.nn.logsumexp(logits, -1) - chosen).mean()}

    for dtype, tolerance in ((jnp.float32, 5e-5), (jnp.float64, 1e-12)):
        for compatibility in ("potts", "full"):
            with jax.enable_x64(dtype == jnp.float64):
                found = gradients(inputs(fixtures, normalization, compatibility, dtype))
            for loss, of in found.items():
                if compatibility == "potts":
                    del of["W1"], of["W2"]  # of which there are no reference numbers
                for name, g in of.items():
                    key = f"d_{name}_{loss}_{normalization}_{compatibility}_{iterations}"
                    expected = reference[key]
                    error = np.abs(np.asarray(g) - expected).max() / np.abs(expected).max()
                    assert g.dtype == dtype
                    assert error < tolerance, (key, dtype)


def test_tiles_are_one_kernel(monkeypatch):
    """Rows in three tiles, of which the last is not full, and their gradients."""
    features, values = np.random.default_rng(0).normal(size=(2, 10, 3)).astype(np.float32)
    distance = ((features[:, None] - features[None]) ** 2).sum(-1)

    def total(features):
        return (exact.gaussian(features)(values) ** 2).sum()

    whole = jax.value_and_grad(total)(features)
    monkeypatch.setattr(exact, "TILE", 40)
    np.testing.assert_allclose(
        exact.gaussian(features)(values), np.exp(-distance / 2) @ values, rtol=1e-5, atol=1e-6
    )
    tiled = jax.value_and_grad(total)(features)
    for a, b in zip(whole, tiled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
