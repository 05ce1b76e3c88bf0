from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled_once, picture, random_variables

from jaxseg.backbones.xception import Xception
from jaxseg.nn.norm import make_norm

EVALUATE = make_norm("batch", train=False)


def test_features_by_stride_and_the_parameter_count():
    image = jnp.zeros((1, 65, 97, 3))
    net = Xception(norm=EVALUATE)
    features, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), image)
    assert {s: f.shape[1:] for s, f in features.items()} == {
        2: (33, 49, 128),
        4: (17, 25, 256),
        8: (9, 13, 728),
        16: (5, 7, 1024),
        32: (3, 4, 2048),
    }

    def norm(c):
        return 2 * c

    def separable(*widths):
        return sum(9 * c + norm(c) + c * f + norm(f) for c, f in pairwise(widths))

    def shortcut(c, f):
        return c * f + norm(f)

    expected = 9 * 3 * 32 + norm(32) + 9 * 32 * 64 + norm(64)
    expected += separable(64, 128, 128, 128) + shortcut(64, 128)  # figure 4, from top to bottom
    expected += separable(128, 256, 256, 256) + shortcut(128, 256)
    expected += separable(256, 728, 728, 728) + shortcut(256, 728)
    expected += 16 * separable(728, 728, 728, 728)
    expected += separable(728, 728, 1024, 1024) + shortcut(728, 1024)
    expected += separable(1024, 1536, 1536, 2048)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == expected


def test_atrous_convolution_is_the_strided_network_evaluated_densely():
    image, features = picture(1, 65, 97, 3), {}
    for stride in (8, 16, 32):
        net = Xception(middle_blocks=1, width=2, output_stride=stride, norm=EVALUATE)
        features[stride] = compiled_once(net.apply)(random_variables(net, image), image)
    assert features[8][32].shape == (1, 9, 13, 128)
    assert np.ptp(features[32][32]) > 1e-3
    close = dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features[16][32][:, ::2, ::2], features[32][32], **close)
    np.testing.assert_allclose(features[8][32][:, ::4, ::4], features[32][32], **close)
    np.testing.assert_allclose(features[8][16][:, ::2, ::2], features[32][16], **close)


def test_norms_have_the_published_epsilon():
    epsilons = set()

    def norm(epsilon=None, **settings):
        epsilons.add(epsilon)
        return EVALUATE(epsilon=epsilon, **settings)

    net = Xception(middle_blocks=1, width=1, norm=norm)
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    assert epsilons == {1e-3}


def test_unknown_output_stride_is_refused():
    with pytest.raises(ValueError, match="expected 8, 16 or 32"):
        Xception(output_stride=4).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
