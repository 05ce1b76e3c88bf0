"""One training step, as a pure function `(state, batch) -> (state, report)`.

It is the same function under `jit` and under `pmap`. Losses arrive as `Mean`s, so every weight is
that of the whole global batch: a step on 8 devices, or in 4 accumulated pieces, has the gradient of
one device that saw all (batch norm's statistics, which are each piece's own, aside).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxseg.types import Array, Batch, Mean, Model, Variables


class State(NamedTuple):
    """Everything that a step changes."""

    step: Array  # int32, batches seen
    skipped: Array  # int32, batches whose loss or gradient was not finite: they changed nothing
    params: Any
    model_state: Variables  # batch statistics and the like
    opt_state: Any
    ema: Any  # moving average of params, or None


class Report(NamedTuple):
    """What a step tells."""

    losses: dict[str, Mean]
    gradient_norm: Array
    finite: Array  # bool
    skipped: Array  # int32, steps so far that were not finite


def init_state(variables: Variables, optimizer: optax.GradientTransformation, ema: bool) -> State:
    """The state before the first step."""
    model_state = dict(variables)
    params = model_state.pop("params")
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # no shared buffers
    average = jax.tree.map(jnp.copy, params) if ema else None
    return State(step, skipped, params, model_state, optimizer.init(params), average)


def variables_of(state: State, *, averaged: bool = True) -> Variables:
    """The variables to predict with: the averaged params where there are any."""
    params = state.ema if averaged and state.ema is not None else state.params
    return {"params": params, **state.model_state}


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    ema_decay: float | None = None,
    axis_name: str | None = None,
) -> Callable[[State, Batch], tuple[State, Report]]:
    """The step for a model and an optimiser.

    accumulate: pieces into which the batch is cut, to fit larger ones into memory; ema_decay: of
    the weights' moving average (it starts lower, at (1 + step) / (10 + step)); axis_name: the
    `pmap` axis across which to sum, None under `jit`.
    """

    def across_devices(tree):
        return tree if axis_name is None else lax.psum(tree, axis_name)

    def step(state: State, batch: Batch) -> tuple[State, Report]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))

        def summed_gradients(model_state, piece, key, weights):
            """Gradients of Σ total / weight, and the losses themselves."""

            def objective(params):
                variables = {"params": params, **model_state}
                losses, new_state = model.loss(variables, piece, key)
                whole = weights or across_devices({n: m.weight for n, m in losses.items()})
                means = [Mean(m.total, whole[n]).value() for n, m in losses.items()]
                return sum(means), (losses, new_state)

            return jax.grad(objective, has_aux=True)(state.params)

        if accumulate == 1:
            grads, (losses, model_state) = summed_gradients(state.model_state, batch, key, None)
        else:
            # Every accumulate-th row, so that each piece is spread over all devices.
            pieces = jax.tree.map(
                lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
            )
            keys = jax.random.split(key, accumulate)

            def weigh(piece_and_key):
                variables = {"params": state.params, **state.model_state}
                piece, key = piece_and_key
                losses, _ = model.loss(variables, piece, jax.random.clone(key))
                return {name: mean.weight for name, mean in losses.items()}

            # Weights first. Where they come from labels alone, as most do, the compiler drops the
            # network from this pass.
            weights = jax.tree.map(lambda w: w.sum(0), lax.map(weigh, (pieces, keys)))
            weights = across_devices(weights)

            def add_piece(carry, piece_and_key):
                model_state, sums = carry
                piece, key = piece_and_key
                grads, (losses, model_state) = summed_gradients(model_state, piece, key, weights)
                return (model_state, jax.tree.map(jnp.add, sums, (grads, losses))), None

            first = jax.tree.map(lambda x: x[0], (pieces, keys))
            shapes = jax.eval_shape(summed_gradients, state.model_state, *first, weights)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][0]))
            carry = (state.model_state, zeros)
            (model_state, (grads, losses)), _ = lax.scan(add_piece, carry, (pieces, keys))

        grads, losses = across_devices(grads), across_devices(losses)
        norm = optax.tree.norm(grads)
        total = sum(mean.value() for mean in losses.values())
        finite = jnp.isfinite(total) & jnp.isfinite(norm)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(params, ema, 1 - decay)

        new = (params, model_state, opt_state, ema)
        old = (state.params, state.model_state, state.opt_state, state.ema)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        new_state = State(state.step + 1, skipped, *kept)
        return new_state, Report(losses, norm, finite, skipped)

    return step
