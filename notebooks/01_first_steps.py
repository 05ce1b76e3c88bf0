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
# # First steps
#
# A dataset, a model, a training step and a score, each used alone. `python -m jaxseg.main` puts the
# same functions together and adds checkpoints, logs and resuming.

# %%
import itertools
from functools import partial

import jax
import numpy as np
import optax

from jaxseg.data import pipeline
from jaxseg.data.builders import prepare
from jaxseg.metrics import confusion
from jaxseg.models import unet
from jaxseg.train.step import init_state, make_step, variables_of
from jaxseg.viz import draw

# %% [markdown]
# ## Data
#
# `shapes` is generated, and written once as ArrayRecord. Other formats are read from disk:
# `prepare("camvid", "path/to/CamVid")`.

# %%
shapes = prepare("shapes", num_train=200, num_val=20)
example = shapes.splits["train"][0]
{name: getattr(value, "shape", value) for name, value in example.items()}

# %% [markdown]
# Each pixel has a label, each object a box, a mask and keypoints.

# %%
picture = draw.enlarge(example["image"], 256)
labels = draw.enlarge(example["segmentation"], 256)
panel = draw.panel([[picture, draw.overlay(picture, labels, shapes.palette)]], ["picture", "truth"])

# %% [markdown]
# A training pipeline is a function of the seed and the position: batch 7 can be had without the
# first six. That is all that resuming needs.

# %%
settings = dict(image_size=(64, 64), num_classes=len(shapes.classes))
augment = partial(
    pipeline.augment_example,
    crop_size=(64, 64),
    scales=(0.75, 1.5),
    flip=True,
    color={"brightness": 0.2},
    **settings,
)
batches = pipeline.training_batches(shapes.splits["train"], augment, batch_size=8, seed=0)
batch = next(batches)
later = pipeline.training_batches(shapes.splits["train"], augment, batch_size=8, seed=0, start=7)
eighth = next(itertools.islice(batches, 6, None))
assert np.array_equal(next(later)["image"], eighth["image"])

# %% [markdown]
# ## Model
#
# Three pure functions. `loss` gives named means, each a total and a weight, so that parts of a
# batch, on several devices, add up exactly.

# %%
model = unet.build(len(shapes.classes), width=8, depth=3, padding="same", norm="batch")
variables = model.init(jax.random.key(0), batch)
losses, _ = model.loss(variables, batch, jax.random.key(1))
print({name: float(mean.value()) for name, mean in losses.items()})
assert abs(float(losses["cross_entropy"].value()) - np.log(len(shapes.classes))) < 2

# %% [markdown]
# ## Training
#
# The step is a pure function, too: `(state, batch) -> (state, report)`.

# %%
optimizer = optax.adam(3e-3)
state = init_state(variables, optimizer, ema=False)
step = jax.jit(make_step(model, optimizer, seed=0))
history = []
for batch in itertools.islice(batches, 40):
    state, report = step(state, batch)
    history.append(float(report.losses["cross_entropy"].value()))
print(f"cross-entropy {history[0]:.3f} -> {history[-1]:.3f}")
assert np.mean(history[-5:]) < np.mean(history[:5])

# %% [markdown]
# ## Scores and pictures

# %%
whole = partial(pipeline.whole_example, **settings)
predict = jax.jit(model.predict)
matrix = 0
for batch in pipeline.evaluation_batches(shapes.splits["val"], whole, batch_size=10):
    found = predict(variables_of(state), batch["image"])["segmentation"]
    matrix = matrix + np.asarray(
        confusion.confusion_matrix(found, batch["segmentation"], len(shapes.classes)), np.int64
    )
print(confusion.table(matrix, shapes.classes))
assert matrix.sum() == 20 * 64 * 64

# %%
confusion_picture = draw.confusion_picture(matrix, shapes.classes)
