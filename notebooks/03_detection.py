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
# # Detection, part by part
#
# What happens between a picture and a list of boxes in a detector of two stages, each part alone.
# The network here is small and its parameters random: what is shown is what it computes.

# %%
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxseg.data.builders import shapes
from jaxseg.models import faster_rcnn, mask_rcnn
from jaxseg.ops.anchors import cell_anchors, grid_anchors
from jaxseg.ops.box_coder import decode_boxes, encode_boxes
from jaxseg.ops.boxes import pairwise_iou
from jaxseg.ops.matching import match_anchors
from jaxseg.ops.nms import nms
from jaxseg.ops.roi import roi_align, roi_pool
from jaxseg.types import MEAN, STD
from jaxseg.viz.objects import draw_boxes, draw_objects, object_colours

scene = shapes.draw_scene(np.random.default_rng(3), (128, 128), max_objects=4)
picture = draw_objects(scene["image"], scene, shapes.CLASSES, masks=scene["masks"])
plt.imshow(picture)

# %% [markdown]
# ## Anchors, and what they are to learn
#
# Boxes of fixed sizes and shapes at every place of a feature map; here every 16 pixels. Each is
# compared with all objects: those that overlap one well learn it, those that overlap none are
# background, those between are left alone.

# %%
anchors = grid_anchors(cell_anchors((24, 48), (0.5, 1, 2)), (8, 8), (16, 16))
quality = pairwise_iou(jnp.asarray(scene["boxes"]), jnp.asarray(anchors))
matches = np.asarray(match_anchors(quality, 0.6, 0.3, allow_low_quality=True))
print(f"{len(anchors)} anchors: {sum(matches >= 0)} positive, {sum(matches == -1)} background")
positive = anchors[matches >= 0]
plt.imshow(draw_boxes(scene["image"], positive, object_colours(9)[matches[matches >= 0]], 1))

# %% [markdown]
# A box is learned as an offset from its anchor, relative to the anchor's size. There and back:

# %%
truth = scene["boxes"][matches[matches >= 0]]
offsets = encode_boxes(jnp.asarray(truth), jnp.asarray(positive))
assert jnp.allclose(decode_boxes(offsets, jnp.asarray(positive)), truth, atol=1e-3)

# %% [markdown]
# ## Non-maximum suppression
#
# Many anchors find the same object. The best one stays and those that overlap it go. The result has
# a fixed size and a mask, so that it can be compiled.

# %%
scores = quality.max(0)[matches >= 0]
kept, mask = nms(jnp.asarray(positive), scores, iou_threshold=0.2, max_outputs=8)
best = positive[np.asarray(kept)[np.asarray(mask)]]
plt.imshow(draw_boxes(scene["image"], best, object_colours(len(best))))

# %% [markdown]
# ## Features of a region
#
# RoI-Pool rounds a box to whole pixels and takes the maximum of each bin; RoI-Align interpolates.
# Move a box by a quarter of a pixel: only one of both notices.

# %%
features = jnp.asarray(scene["image"], jnp.float32) / 255
box = jnp.asarray(scene["boxes"][:1])
align = partial(roi_align, features, size=(7, 7), aligned=True)
pool = partial(roi_pool, features, size=(7, 7))
for name, region in (("align", align), ("pool", pool)):
    moved = jnp.abs(region(boxes=box + 0.25) - region(boxes=box)).max()
    print(f"RoI-{name}: changes by {moved:.3f}")
assert jnp.abs(pool(boxes=box + 0.25) - pool(boxes=box)).max() == 0

# %% [markdown]
# ## A detector: two networks that share their features
#
# Mask R-CNN is Faster R-CNN with one more head, `mask_rcnn.mask_head`, given to the same network.

# %%
settings = faster_rcnn.Settings(
    anchor_sizes=((16,), (24,), (32,), (48,)), proposals=(50, 50), detections=5, min_score=0.0
)
network = faster_rcnn.FasterRCNN(
    num_classes=6,
    backbone="resnet18",
    width=8,
    levels=(4, 8, 16),
    features=16,
    anchors_per_place=3,
    box_dense=(32,),
    heads=(mask_rcnn.mask_head(6, features=8, convolutions=1),),
    norm="group",
)
image = jnp.asarray((scene["image"] / 255 - MEAN) / STD, jnp.float32)[None]
variables = jax.jit(network.init)(jax.random.key(0), image)
predict = jax.jit(nn.apply(faster_rcnn.predictions, network), static_argnums=1)
found = predict(variables, settings, image, None)
for name, value in found.items():
    print(f"{name:16} {value.shape}")
assert found["masks"].shape == (1, 5, 28, 28)
