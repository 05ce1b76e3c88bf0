import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from jaxseg.ops.matching import BACKGROUND, IGNORED, match_anchors

QUALITY = jnp.asarray([[0.9, 0.2, 0.4, 0.1], [0.1, 0.2, 0.5, 0.3]])
SETTINGS = {
    "matcher_rpn": (0.7, 0.3, True),
    "matcher_roi": (0.5, 0.5, False),
    "matcher_retina": (0.5, 0.4, True),
}


def test_matches_by_hand():
    found = match_anchors(QUALITY, 0.7, 0.3)
    assert found.tolist() == [0, BACKGROUND, IGNORED, IGNORED]  # of which 0.3 is not under 0.3
    found = match_anchors(QUALITY, 0.7, 0.3, allow_low_quality=True)
    assert found.tolist() == [0, BACKGROUND, 1, IGNORED]
    assert match_anchors(QUALITY, 0.5, 0.5).tolist() == [0, BACKGROUND, 1, BACKGROUND]


def test_the_best_anchor_of_an_object_may_learn_another_one():
    # The second object's best anchor overlaps the first one more; of equal objects, the first.
    quality = jnp.asarray([[0.6, 0.0, 0.2], [0.5, 0.0, 0.2]])
    found = match_anchors(quality, 0.7, 0.3, allow_low_quality=True)
    assert found.tolist() == [0, BACKGROUND, BACKGROUND]
    assert match_anchors(quality, 0.2, 0.1).tolist() == [0, BACKGROUND, 0]


@pytest.mark.parametrize("name", SETTINGS)
def test_matches_are_torchvisions(fixtures, name):
    arrays = published.read(fixtures, "ops/boxes").arrays
    high, low, allow = SETTINGS[name]
    found = match_anchors(arrays[f"{name}/quality"], high, low, allow_low_quality=allow)
    np.testing.assert_array_equal(found, arrays[f"{name}/matches"])


@pytest.mark.parametrize("allow", [False, True])
def test_padding_changes_nothing(allow):
    match = jax.jit(lambda q, m: match_anchors(q, 0.7, 0.3, allow_low_quality=allow, object_mask=m))
    alone = match_anchors(QUALITY, 0.7, 0.3, allow_low_quality=allow)
    padded = jnp.concatenate([QUALITY, jnp.zeros((1, 4)), jnp.ones((1, 4))])
    mask = jnp.array([True, True, False, False])
    assert match(padded, mask).tolist() == alone.tolist()
    both = jax.vmap(match)(jnp.stack([padded, padded]), jnp.stack([mask, mask & False]))
    assert both.tolist() == [alone.tolist(), [BACKGROUND] * 4]


def test_an_image_without_objects_is_background():
    nothing = match_anchors(jnp.zeros((0, 3)), 0.7, 0.3, allow_low_quality=True)
    assert nothing.tolist() == [BACKGROUND] * 3


def test_thresholds_the_wrong_way_round():
    with pytest.raises(ValueError, match=r"high, 0\.3, is less than low, 0\.7"):
        match_anchors(QUALITY, 0.3, 0.7)
