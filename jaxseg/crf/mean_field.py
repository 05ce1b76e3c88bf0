"""Mean-field inference in a conditional random field with Gaussian pairwise terms.

Krähenbühl & Koltun 2011, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials": the energy of labels x given an image is

    E(x) = Σ_i ψ_u(x_i) + ½ Σ_i Σ_j≠i Σ_m μ_m(x_i, x_j) k_m(f_i, f_j)

and Q(x) = Π_i Q_i(x_i) is sought that is closest to P(x) = exp(−E(x)) / Z. Here all points change
at once (their algorithm 1).

    logits    −ψ_u [N K]
    filter    v ↦ K_m v, [N K] -> [N K], linear: see `crf.filtering`
    compatibility μ_m: a number w or w for each label [K] is Potts' model, w · [x_i ≠ x_j]; a
              matrix [K K] is the cost of label k here with label l there
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxseg.types import Array

Filter = Callable[[Float[Array, "N K"]], Float[Array, "N K"]]


class Pairwise(NamedTuple):
    """One pairwise term."""

    filter: Filter
    compatibility: Float[Array, "..."] | float


def mean_field(
    logits: Float[Array, "N K"],
    terms: Sequence[Pairwise],
    iterations: int = 10,
    *,
    damping: float = 0.0,
) -> Float[Array, "N K"]:
    """The logits of Q, whose softmax are the marginals, after some iterations from softmax(logits).

    damping: share of the former logits that each iteration keeps, 0 ≤ damping < 1. The gradient
    needs the marginals of each iteration and nothing more. Raises ValueError for numbers out of
    range.
    """
    if iterations < 1 or not 0 <= damping < 1:
        raise ValueError(
            f"iterations is {iterations} and damping {damping}, expected 1 or more, and 0 or more "
            "and below 1"
        )
    costs, floats, others = _hoisted(lambda q: cost(q, terms), logits)
    return _mean_field(costs, iterations, damping, logits, floats, others)


def _hoisted(function: Callable, example: Array) -> tuple[Callable, list, list]:
    """The function with what it closes over as further arguments: traced floats, which may have
    gradients, and other traced arrays. (`jax.closure_convert` leaves integers where they are, out
    of reach for the gradient's trace; but the lattice is made of these.)"""
    closed = jax.make_jaxpr(function)(example)
    traced = [isinstance(c, jax.core.Tracer) for c in closed.consts]
    is_float = [jnp.issubdtype(jnp.result_type(c), jnp.inexact) for c in closed.consts]
    floats = [c for c, t, f in zip(closed.consts, traced, is_float, strict=True) if t and f]
    others = [c for c, t, f in zip(closed.consts, traced, is_float, strict=True) if t and not f]

    def hoisted(x: Array, floats: list, others: list) -> Array:
        given = {True: iter(floats), False: iter(others)}
        consts = [
            next(given[f]) if t else c
            for c, t, f in zip(closed.consts, traced, is_float, strict=True)
        ]
        return jax.core.eval_jaxpr(closed.jaxpr, consts, x)[0]

    return hoisted, floats, others


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _mean_field(
    costs: Callable, iterations: int, damping: float, logits: Array, floats: list, others: list
) -> Array:
    return _iterate(costs, iterations, damping, logits, floats, others)[0]


def _iterate(
    costs: Callable, iterations: int, damping: float, logits: Array, floats: list, others: list
) -> tuple[Array, tuple]:
    """The last logits, and what the gradient needs."""

    def step(current: Array, _: None) -> tuple[Array, Array]:
        marginals = jax.nn.softmax(current)
        updated = logits - costs(marginals, floats, others)
        return damping * current + (1 - damping) * updated if damping else updated, marginals

    last, marginals = lax.scan(step, logits, length=iterations)
    return last, (marginals, floats, others)


def _gradient(
    costs: Callable, iterations: int, damping: float, saved: tuple, g: Array
) -> tuple[Array, list, None]:
    """Those of the logits and of the floats; g is that of the last logits."""
    marginals, floats, others = saved

    def before(q: Array, g: Array) -> tuple[Array, list, Array | float]:
        """From the gradient of an iteration's result: that of the marginals q it began with, that
        of the floats, and that of the logits it began with, past the marginals."""
        _, pull = jax.vjp(lambda q, floats: costs(q, floats, others), q, floats)
        dq, dfloats = pull((damping - 1) * g)
        return dq, dfloats, damping * g if damping else 0.0

    def through_softmax(q: Array, dq: Array) -> Array:
        return q * (dq - (q * dq).sum(-1, keepdims=True))

    # Each turn begins at the softmax and ends with the filters: so XLA:CPU has in memory, between
    # turns, what it would otherwise compute anew for every use.
    def step(carry: tuple, t: Array) -> tuple[tuple, None]:
        dq, past, dlogits, dfloats = carry
        g = past + through_softmax(marginals[t], dq)
        dq, more, past = before(marginals[t - 1], g)
        dlogits = dlogits + (1 - damping) * g
        return (dq, past, dlogits, jax.tree.map(jnp.add, dfloats, more)), None

    dq, dfloats, past = before(marginals[-1], g)
    carry = dq, past, (1 - damping) * g, dfloats
    steps = jnp.arange(1, iterations)
    (dq, past, dlogits, dfloats), _ = lax.scan(step, carry, steps, reverse=True)
    return dlogits + past + through_softmax(marginals[0], dq), dfloats, None


_mean_field.defvjp(_iterate, _gradient)


def cost(marginals: Float[Array, "N K"], terms: Sequence[Pairwise]) -> Float[Array, "N K"]:
    """Σ_m Σ_j Σ_l μ_m(k, l) k_m(f_i, f_j) Q_j(l): what each label would cost each point. For
    Potts' model less what all labels of a point cost alike, and so negative."""
    # Labels are mixed before they are filtered, which is the same; but so the gradient with respect
    # to μ needs only the filtered gradient, and no filtered marginals.
    return reduce(jnp.add, [term.filter(mix(marginals, term.compatibility)) for term in terms])


def mix(marginals: Float[Array, "N K"], compatibility: Array | float) -> Float[Array, "N K"]:
    """Σ_l μ(k, l) Q_j(l), for Potts' model −w Q_j(k)."""
    compatibility = jnp.asarray(compatibility, marginals.dtype)
    if compatibility.ndim < 2:
        return -compatibility.reshape(1, -1) * marginals
    return jnp.matmul(marginals, compatibility.T, precision=lax.Precision.HIGHEST)
