"""Heads of detectors at a few places, or on a few regions, are heads everywhere, cut out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.nn.roi_heads import where_chosen
from jaxseg.nn.rpn import RPNHead, neighbourhoods


def test_neighbourhoods_by_hand():
    """Two maps, of 2×3 and of 1×1, whose pixels are numbered from 1."""
    maps = jnp.arange(1.0, 7).reshape(2, 3, 1), jnp.full((1, 1, 1), 7.0)
    seen, inside = neighbourhoods(maps, jnp.array([0, 4, 6]), 1)
    expected = [
        [[0, 0, 0], [0, 1, 2], [0, 4, 5]],
        [[1, 2, 3], [4, 5, 6], [0, 0, 0]],
        [[0, 0, 0], [0, 7, 0], [0, 0, 0]],
    ]
    np.testing.assert_array_equal(seen[..., 0], expected)
    np.testing.assert_array_equal(inside, np.array(expected) > 0)


@pytest.mark.parametrize("convolutions", [1, 2])
def test_rpn_head_at_all_places_is_the_head_on_the_map(convolutions):
    """With its gradients; the maps are smaller than what the head sees."""
    rng = np.random.default_rng(0)
    maps = [jnp.asarray(rng.normal(size=(*size, 4)), jnp.float32) for size in ((5, 6), (2, 1))]
    head = RPNHead(3, convolutions)
    variables = head.init(jax.random.key(0), maps[0][None])
    weights = rng.normal(size=(32 * 3, 5)).astype(np.float32)

    def everywhere(variables, maps):
        found = [head.apply(variables, x[None]) for x in maps]
        logits = jnp.concatenate([logits[0] for logits, _ in found])
        deltas = jnp.concatenate([deltas[0] for _, deltas in found])
        return jnp.column_stack([logits, deltas])

    def place_by_place(variables, maps):
        around = neighbourhoods(maps, jnp.arange(32), convolutions)
        logits, deltas = head.apply(variables, *around)
        return jnp.column_stack([logits.reshape(-1), deltas.reshape(-1, 4)])

    @partial(jax.jit, static_argnums=0)
    def pull(run, variables, maps):
        found, back = jax.vjp(run, variables, maps)
        return found, back(weights)

    pulled = (jax.tree.leaves(pull(run, variables, maps)) for run in (everywhere, place_by_place))
    for one, other in zip(*pulled, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_where_chosen(count):
    """Only the rows chosen are computed, two at a time, and have a gradient."""
    x = jnp.arange(1.0, 11).reshape(5, 2)
    chosen = jnp.isin(jnp.arange(5), jnp.array([3, 1, 4, 0, 2])[:count])
    scale = np.array([2.0, 3.0], np.float32)

    def run(scale, x):
        return where_chosen(lambda rows: (rows * scale[None]) ** 2, (x,), chosen, size=2)

    found, pull = jax.vjp(run, scale, x)
    some = np.where(chosen[:, None], x, 0)
    np.testing.assert_array_equal(found, (some * scale) ** 2)
    to_scale, to_x = pull(jnp.ones_like(found))
    np.testing.assert_allclose(to_scale, (2 * some**2 * scale).sum(0))
    np.testing.assert_allclose(to_x, 2 * some * scale**2)


def test_where_chosen_skips():
    """What is not computed cannot fail: a row that would give no number is left alone."""
    x = jnp.array([[1.0], [0.0], [0.0]])
    seen = []

    def run(rows):
        jax.debug.callback(lambda rows: seen.append(rows[:, 0].tolist()), rows)
        return 1 / rows

    found = where_chosen(run, (x,), jnp.array([True, False, False]), size=1)
    jax.effects_barrier()
    np.testing.assert_array_equal(found, [[1], [0], [0]])
    assert seen == [[1.0]]
