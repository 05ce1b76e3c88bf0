import jax
import jax.numpy as jnp

from jaxseg.backbones.vgg import VGG16


def test_features_by_stride_and_the_published_parameter_count():
    image = jnp.zeros((1, 45, 64, 3))
    features, variables = jax.eval_shape(VGG16().init_with_output, jax.random.key(0), image)
    assert {s: f.shape[1:] for s, f in features.items()} == {
        2: (23, 32, 64),  # odd sizes are rounded up
        4: (12, 16, 128),
        8: (6, 8, 256),
        16: (3, 4, 512),
        32: (2, 2, 512),
    }
    # Simonyan & Zisserman, table 2: 138M, of which all but these are in the dense layers
    assert sum(x.size for x in jax.tree.leaves(variables)) == 14_714_688
