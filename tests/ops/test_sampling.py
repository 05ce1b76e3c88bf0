import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.sampling import sample_balanced


def masks(num_positive, num_negative, total=100):
    """Positives first, then negatives, then what is neither."""
    place = jnp.arange(total)
    negative = (place >= num_positive) & (place < num_positive + num_negative)
    return place < num_positive, negative


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        ((50, 50), (5, 15)),  # as many as the fraction allows
        ((3, 50), (3, 17)),  # negatives for the missing positives
        ((0, 50), (0, 20)),
        ((50, 4), (5, 4)),  # and no positives for missing negatives
        ((2, 1), (2, 1)),
        ((0, 0), (0, 0)),
    ],
)
def test_how_many_of_each(available, expected):
    positive, negative = masks(*available)
    indices, mask = jax.jit(sample_balanced, static_argnums=(3, 4))(
        jax.random.key(0), positive, negative, 20, 0.25
    )
    assert indices.shape == mask.shape == (20,)
    drawn = indices[: mask.sum()]
    assert len(set(drawn.tolist())) == sum(expected)  # without replacement
    assert positive[drawn].tolist() == [True] * expected[0] + [False] * expected[1]
    assert negative[drawn].tolist() == [False] * expected[0] + [True] * expected[1]
    assert not indices[mask.sum() :].any()


def test_without_a_key_the_first_are_taken():
    positive = jnp.array([False, True, False, True, True, False])
    indices, mask = sample_balanced(None, positive, ~positive, 4, 0.5)
    assert indices.tolist() == [1, 3, 0, 2]
    assert mask.all()


def test_more_samples_than_there_are():
    indices, mask = sample_balanced(jax.random.key(0), *masks(1, 2, total=3), 8, 0.5)
    assert sorted(indices[:3].tolist()) == [0, 1, 2]
    assert mask.tolist() == [True] * 3 + [False] * 5


def test_all_have_the_same_chance_and_keys_differ():
    def draw(key):
        return sample_balanced(key, *masks(10, 20, total=40), 10, 0.5)

    indices, mask = jax.vmap(draw)(jax.random.split(jax.random.key(0), 400))
    assert mask.all()
    times = np.bincount(np.asarray(indices).ravel(), minlength=40)
    # 400 × 5 of 10 and 400 × 5 of 20; five standard deviations of the binomials
    np.testing.assert_allclose(times[:10], 200, atol=50)
    np.testing.assert_allclose(times[10:30], 100, atol=44)
    assert not times[30:].any()
    first = draw(jax.random.split(jax.random.key(0), 400)[0])[0]
    np.testing.assert_array_equal(first, indices[0])
