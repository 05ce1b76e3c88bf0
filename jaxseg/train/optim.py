"""Optimisers and schedules, from optax. Time is in steps, learning rates are absolute.

A config's `optim`:

    name           "sgd" or "adamw"
    learning_rate  the highest
    schedule       "constant", "poly" (Chen et al. 2018: (1 − t/T)^power), "cosine", or "step"
    warmup_steps   linear warm-up from 0
    power          of "poly"
    milestones     steps at which "step" multiplies the rate by `gamma`
    momentum       of "sgd"
    weight_decay   of kernels alone: norms and biases have one axis and are left alone
    clip_norm      global norm above which gradients are scaled down, or None
    multipliers    {regular expression: factor} on learning rates, by parameter path such as
                   "backbone/stage1_conv1/kernel"; where several are found in a path, their
                   factors multiply. 0 freezes: no update, no decay, no part in the norm.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax


def make_schedule(optim: Any, steps: int) -> optax.Schedule:
    """Learning rate by step, for a run of `steps`."""
    peak, warmup = optim.learning_rate, optim.warmup_steps
    rest = max(steps - warmup, 1)
    match optim.schedule:
        case "constant":
            decay = optax.constant_schedule(peak)
        case "poly":
            decay = optax.polynomial_schedule(peak, 0.0, optim.power, rest)
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, rest)
        case "step":
            drops = {int(step) - warmup: optim.gamma for step in optim.milestones}
            decay = optax.piecewise_constant_schedule(peak, drops)
        case other:
            raise ValueError(
                f"optim.schedule is {other!r}, expected constant, poly, cosine or step"
            )
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(optim: Any, steps: int) -> optax.GradientTransformation:
    """The optax transformation that a config's `optim` describes."""
    schedule = make_schedule(optim, steps)
    match optim.name:
        case "sgd":
            rule = optax.trace(decay=optim.momentum) if optim.momentum else optax.identity()
        case "adamw":
            rule = optax.scale_by_adam()
        case other:
            raise ValueError(f"optim.name is {other!r}, expected sgd or adamw")
    decay = optax.add_decayed_weights(optim.weight_decay, mask=_is_kernel)
    # SGD's decay is part of the gradient, AdamW's is not (Loshchilov & Hutter 2019).
    core = [decay, rule] if optim.name == "sgd" else [rule, decay]
    if optim.clip_norm:
        core.insert(0, optax.clip_by_global_norm(optim.clip_norm))
    rate = optax.scale_by_learning_rate(schedule)
    if not optim.multipliers:
        return optax.chain(*core, rate)

    multipliers = dict(optim.multipliers)

    def scale(updates, params=None):
        return jax.tree.map(lambda u, m: u * m, updates, path_multipliers(updates, multipliers))

    def is_frozen(params):
        return jax.tree.map(lambda m: m == 0, path_multipliers(params, multipliers))

    freeze = optax.masked(optax.set_to_zero(), is_frozen)
    return optax.chain(freeze, *core, rate, optax.stateless(scale))


def path_multipliers(params: Any, multipliers: dict[str, float]) -> Any:
    """The learning-rate factor of each parameter: the product over the expressions found in its
    path.

    Raises ValueError for an expression that no parameter's path contains.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    for pattern in multipliers:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"optim.multipliers: {pattern!r} is found in no parameter; there are, for example, "
                + ", ".join(paths[:3])
            )

    def factor(path):
        return math.prod(m for pattern, m in multipliers.items() if re.search(pattern, path))

    return jax.tree.unflatten(tree, [factor(path) for path in paths])


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)
