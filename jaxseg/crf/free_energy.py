"""What mean field minimises, to watch it converge.

Krähenbühl & Koltun 2011, section 2: of all Q(x) = Π_i Q_i(x_i), that closest to P(x), which is
exp(−E(x)) / Z, is sought. With the entropy H,

    KL(Q ‖ P) = F(Q) + log Z        F(Q) = E_Q[E(x)] − H(Q)

so that F is −log Z or more. Its terms count pairs of different points: filters must be without a
message of a point to itself (`filtering.normalized(…, self_message=False)`), and symmetric. With
that message F has a cost of Q_i with itself, too; the iterations descend on that sum in the same
way, but it is no bound any more.

The energy is that of `mean_field.cost`: Potts' model is −w_k for two points of the same label k, so
that it lies below w [x_i ≠ x_j] by the same for all labellings.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxseg.crf.mean_field import Pairwise, cost
from jaxseg.types import Array


def expected_energy(
    marginals: Float[Array, "N K"], logits: Float[Array, "N K"], terms: Sequence[Pairwise]
) -> Float[Array, ""]:
    """E_Q[E(x)] with ψ_u = −logits. For marginals that are 0 and 1, the energy of a labelling."""
    return (marginals * (0.5 * cost(marginals, terms) - logits)).sum()


def free_energy(
    q_logits: Float[Array, "N K"], logits: Float[Array, "N K"], terms: Sequence[Pairwise]
) -> Float[Array, ""]:
    """F(Q) = KL(Q ‖ P) − log Z, in nats, of Q = softmax(q_logits)."""
    marginals, log_marginals = jax.nn.softmax(q_logits), jax.nn.log_softmax(q_logits)
    return expected_energy(marginals, logits, terms) + (marginals * log_marginals).sum()


def watched_mean_field(
    logits: Float[Array, "N K"],
    terms: Sequence[Pairwise],
    iterations: int = 10,
    *,
    damping: float = 0.0,
) -> tuple[Float[Array, "N K"], Float[Array, "{iterations+1}"]]:
    """What `mean_field` gives, and F(Q) before and after each of T iterations. Where F rises, as it
    may where all points change at once, damping helps."""

    def step(current: Array, _: None) -> tuple[Array, Array]:
        marginals, log_marginals = jax.nn.softmax(current), jax.nn.log_softmax(current)
        costs = cost(marginals, terms)
        energy = (marginals * (0.5 * costs - logits + log_marginals)).sum()
        return damping * current + (1 - damping) * (logits - costs), energy

    last, energies = lax.scan(step, logits, length=iterations)
    return last, jnp.append(energies, free_energy(last, logits, terms))
