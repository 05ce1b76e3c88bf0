# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Semantic segmentation, idea by idea
#
# From the classifier that slides to atrous convolution, each idea as one small experiment. Networks
# here are narrow and their parameters random: what is shown is what they compute, not how well.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models import deconvnet, deeplab, fcn, hourglass, lraspp, patch_classifier, unet
from jaxseg.nn.head import Head
from jaxseg.ops import unpool
from jaxseg.ops.conv import conv2d

# %% [markdown]
# ## A pixel classifier, patch by patch and all at once
#
# Before 2015 one cut a window around every pixel and classified it. Neighbouring windows share
# nearly everything; a convolutional network computes the shared part once. The same weights, the
# same answers:

# %%
network = patch_classifier.PatchClassifier(num_classes=3, window=65, width=4, head_width=8)
image = jax.random.normal(jax.random.key(0), (1, 9, 12, 3))
variables = network.init(jax.random.key(1), jnp.zeros((1, 65, 65, 3)))
one_by_one = patch_classifier.predict_patchwise(network, variables, image)
at_once = patch_classifier.predict_dense(network, variables, image)
difference = jnp.abs(one_by_one["probabilities"] - at_once["probabilities"]).max()
print(f"largest difference {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# ## Dense layers are convolutions
#
# A dense layer over 7×7 features is a 7×7 convolution. On larger features it slides, and a number
# becomes a map:

# %%
features = jax.random.normal(jax.random.key(2), (1, 9, 11, 16))
head = Head(num_classes=5, hidden={"fc6": 32, "fc7": 32}, window=7, sliding=True)
variables = head.init(jax.random.key(3), features)
scores = head.apply(variables, features)
corner = head.clone(sliding=False).apply(variables, features[:, :7, :7])
print(scores.shape, corner.shape)
assert jnp.allclose(scores[:, 0, 0], corner, atol=1e-4)

# %% [markdown]
# ## Four ways back up

# %%
x = jnp.array([[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])[None, :, :, None]
pooled, switches = unpool.max_pool_with_switches(x)
ways = {
    "nearest": unpool.upsample_nearest(pooled, 2),
    "bed of nails": unpool.bed_of_nails(pooled, 2),
    "max unpooling": unpool.max_unpool(pooled, switches, (4, 4)),
}
for name, y in ways.items():
    print(name, y[0, ..., 0], sep="\n")

# %% [markdown]
# The fourth is learned. FCN starts its transposed convolutions bilinear:

# %%
print(fcn.bilinear_init(jax.random.key(0), (4, 4, 1, 1))[..., 0, 0])

# %% [markdown]
# ## Holes instead of strides
#
# y[i] = Σ_k x[i + r·k] w[k]. A convolution after a stride of 2 sees every second pixel; with a
# dilation of 2 it sees the same ones, at every place. So the dense map holds the coarse one:

# %%
x = jax.random.normal(jax.random.key(4), (1, 17, 17, 2))
kernel = jax.random.normal(jax.random.key(5), (3, 3, 2, 4))
coarse = conv2d(x[:, ::2, ::2], kernel, padding=1)
dense = conv2d(x, kernel, padding=2, dilation=2)
print(coarse.shape, dense.shape)
assert jnp.allclose(dense[:, ::2, ::2], coarse, atol=1e-5)

# %% [markdown]
# ## The systems
#
# Each is one file, and each `build` gives the same three functions. Parameters as published, 21
# classes; `eval_shape` counts without making them:

# %%
systems = {
    "patch classifier": patch_classifier.PatchClassifier(21),
    "FCN-8s": fcn.FCN(21),
    "FCN, ResNet-50": fcn.DilatedFCN(21),
    "DeconvNet": deconvnet.DeconvNet(21),
    "U-Net": unet.UNet(21),
    "DeepLab v1": deeplab.DeepLab(21),
    "DeepLab v3": deeplab.DeepLabV3(21),
    "DeepLab v3+": deeplab.DeepLabV3Plus(21),
    "stacked hourglass": hourglass.HourglassSegmenter(21),
    "LR-ASPP": lraspp.LRASPP(21),
}
image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
for name, system in systems.items():
    variables = jax.eval_shape(system.init, jax.random.key(0), image)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    print(f"{name:20} {count / 1e6:6.1f} M parameters")
