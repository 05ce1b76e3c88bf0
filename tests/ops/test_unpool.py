import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import conv, unpool

GEOMETRIES = [
    # size, window, stride, padding, ceil_mode
    ((6, 8), 2, 2, 0, False),
    ((7, 9), 2, 2, 0, False),  # a last row and column that no window covers
    ((7, 9), 2, 2, 0, True),
    ((9, 9), 3, 3, 1, False),
    ((7, 9), 1, 2, 0, False),  # pixels that no window sees
    ((7, 9), 3, 2, 1, False),  # windows overlap
    ((8, 11), 3, 2, 0, True),
]


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def plane(rows):
    return jnp.asarray(rows, jnp.float32)[None, :, :, None]


def test_nearest_and_nails_by_hand():
    x = plane([[1, 2], [3, 4]])
    nearest, nails = unpool.upsample_nearest(x, 2), unpool.bed_of_nails(x, 2)
    assert nearest[0, ..., 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert nails[0, ..., 0].tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("factor", [1, 3])
def test_nearest_and_nails_of_other_factors(factor):
    x = random(2, 3, 4, 5)
    nearest, nails = unpool.upsample_nearest(x, factor), unpool.bed_of_nails(x, factor)
    np.testing.assert_array_equal(nearest, x.repeat(factor, 1).repeat(factor, 2))
    np.testing.assert_array_equal(nails[:, ::factor, ::factor], x)
    np.testing.assert_allclose(nails.sum(), x.sum(), rtol=1e-5)  # and nothing elsewhere
    for upsample, each in ((unpool.upsample_nearest, factor**2), (unpool.bed_of_nails, 1)):
        grad = jax.grad(lambda x, f=upsample: f(x, factor).sum())(x)
        np.testing.assert_array_equal(grad, np.full_like(x, each))


def test_switches_by_hand():
    # The example of the textbooks: pooled, changed, and put back where the maxima were.
    x = plane([[1, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])
    pooled, switches = unpool.max_pool_with_switches(x)
    assert pooled[0, ..., 0].tolist() == [[5, 6], [7, 8]]
    assert switches[0, ..., 0].tolist() == [[5, 2], [12, 15]]
    back = unpool.max_unpool(plane([[1, 2], [3, 4]]), switches, (4, 4))
    assert back[0, ..., 0].tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]]


def test_first_of_equal_maxima_wins_and_has_the_gradient():
    x = plane([[1, 1], [1, 1]])
    assert unpool.max_pool_with_switches(x)[1].ravel().tolist() == [0]
    grad = jax.grad(lambda x: unpool.max_pool_with_switches(x)[0].sum())(x)
    assert grad.ravel().tolist() == [1, 0, 0, 0]


def test_what_is_not_a_number_is_not_lost():
    for place in range(4):
        x = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        pooled, switches = unpool.max_pool_with_switches(x)
        assert np.isnan(pooled).all()
        assert switches.ravel().tolist() == [place]


def test_of_windows_that_share_a_maximum_the_last_has_its_place():
    x = plane([[0, 0, 1, 0, 0], [0, 0, 2, 0, 0], [0, 0, 1, 0, 0]])
    pooled, switches = unpool.max_pool_with_switches(x, 3, 2)
    assert pooled.ravel().tolist() == [2, 2]
    assert switches.ravel().tolist() == [7, 7]

    def back(values):
        return unpool.max_unpool(values.reshape(1, 1, 2, 1), switches, (3, 5), 3, 2)

    values = jnp.array([10.0, 20.0])
    assert back(values)[0, 1, :, 0].tolist() == [0, 0, 20, 0, 0]
    assert back(values).sum() == 20
    assert jax.grad(lambda v: back(v).sum())(values).tolist() == [0, 1]


def test_pooling_undoes_unpooling():
    x = random(3, 7, 10, 2)
    pooled, switches = unpool.max_pool_with_switches(x)
    values = random(*pooled.shape, seed=1)  # not negative

    def there_and_back(values, switches):
        unpooled = unpool.max_unpool(values[None], switches[None], (7, 10))
        return unpool.max_pool_with_switches(unpooled)

    again, same = jax.vmap(there_and_back)(values, switches)
    np.testing.assert_array_equal(again[:, 0], values)
    np.testing.assert_array_equal(same[:, 0], switches)


@pytest.mark.parametrize(("size", "window", "stride", "padding", "ceil_mode"), GEOMETRIES)
def test_unpooling_puts_every_maximum_back(size, window, stride, padding, ceil_mode):
    x = random(2, *size, 3)
    geometry = (window, stride, padding)
    pooled, switches = jax.jit(
        lambda x: unpool.max_pool_with_switches(x, *geometry, ceil_mode=ceil_mode)
    )(x)
    np.testing.assert_array_equal(pooled, conv.max_pool2d(x, *geometry, ceil_mode=ceil_mode))
    flat = np.asarray(x).reshape(2, -1, 3)
    rows = np.asarray(switches).reshape(2, -1, 3)
    values = np.take_along_axis(flat, rows, axis=1)
    np.testing.assert_array_equal(values.reshape(pooled.shape), pooled)

    expected = np.zeros_like(flat)
    np.put_along_axis(expected, rows, values, axis=1)
    back = unpool.max_unpool(pooled, switches, size, *geometry)
    np.testing.assert_array_equal(back, expected.reshape(x.shape))


def test_gradient_of_unpooling_is_read_at_the_switches():
    x, weights = random(1, 5, 7, 2), random(1, 5, 7, 2, seed=1)
    pooled, switches = unpool.max_pool_with_switches(x)
    grad = jax.grad(lambda v: (weights * unpool.max_unpool(v, switches, (5, 7))).sum())(pooled)
    flat = np.asarray(weights).reshape(1, -1, 2)
    expected = np.take_along_axis(flat, np.asarray(switches).reshape(1, -1, 2), axis=1)
    np.testing.assert_array_equal(grad, expected.reshape(pooled.shape))
