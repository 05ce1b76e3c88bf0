"""α-expansion: labels of low energy on a grid, by minimum cuts; on the host.

Boykov, Veksler & Zabih 2001, "Fast Approximate Energy Minimization via Graph Cuts": in a move,
every pixel keeps its label or takes the label α, and the best of all these moves is a minimum cut
(of a graph that has no nodes but pixels, as in Kolmogorov & Zabih 2004, "What Energy Functions Can
Be Minimized via Graph Cuts?"). Moves are made for one label after the other until none lowers the
energy. For two labels that is the least energy there is. For more, with Potts' model and no energy
below zero, it is at most twice the least (their theorem 6.1).
"""

from itertools import cycle
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from jaxseg.crf.grid import check, check_labels, first, offsets, pair_costs, second
from jaxseg.types import Array

LARGEST = 2**30  # capacity: they are int32


class Problem(NamedTuple):
    """Unary costs, and pairs of neighbours i, j as positions in the flat grid."""

    unary: Float[np.ndarray, "N K"]
    i: Int[np.ndarray, "P"]
    j: Int[np.ndarray, "P"]
    weight: Float[np.ndarray, "P"]
    costs: Float[np.ndarray, "K K"]


def alpha_expansion(
    logits: Float[Array, "..."],
    weights: Float[Array, "E *S"],
    compatibility: float | Array = 1.0,
    *,
    start: Int[Array, "..."] | None = None,
) -> tuple[Int[np.ndarray, "*S"], Float[np.ndarray, "M"]]:
    """Labels, and the energies before the first move and after each that lowered it; the last is
    that of the labels.

    logits [*S K], weights, compatibility: as in `crf.grid`; computed in float64, but for
    capacities, which are in steps of 2⁻³⁰ of the largest. start: the first labels [*S]; None: the
    likeliest by logits.

    Raises ValueError where sizes do not fit; for logits and weights that are not finite, and
    weights below zero; and for a compatibility that is no metric, with which cuts would not find
    the best moves.
    """
    check(logits, weights, compatibility)
    if start is not None:
        check_labels(start, logits)
    problem = problem_of(np.asarray(logits), np.asarray(weights), compatibility)
    points, K = problem.unary.shape
    labels = problem.unary.argmin(1) if start is None else np.asarray(start).reshape(points)
    energies, failed = [energy(labels, problem)], 0
    for label in cycle(range(K)):
        moved = np.where(expansion(label, labels, problem), label, labels)
        lower = energy(moved, problem)
        if lower < energies[-1]:
            labels, failed = moved, 0
            energies.append(lower)
        else:
            failed += 1
        if failed == K:
            break
    return labels.reshape(logits.shape[:-1]).astype(np.int32), np.array(energies)


def problem_of(logits: np.ndarray, weights: np.ndarray, compatibility: float | Array) -> Problem:
    """In float64; pairs whose weight is 0 are left out. Errors: see `alpha_expansion`."""
    size, K = logits.shape[:-1], logits.shape[-1]
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("weights: some are not finite, or below zero")
    costs = np.asarray(pair_costs(compatibility, K), np.float64)
    check_metric(costs)
    place = np.arange(np.prod(size)).reshape(size)
    near = list(zip(offsets(len(size), 2 * len(weights)), weights, strict=True))
    i = np.concatenate([place[first(o)].reshape(-1) for o, _ in near])
    j = np.concatenate([place[second(o)].reshape(-1) for o, _ in near])
    weight = np.concatenate([w[first(o)].reshape(-1) for o, w in near]).astype(np.float64)
    some = weight > 0
    unary = -logits.reshape(-1, K).astype(np.float64)
    return Problem(unary, i[some], j[some], weight[some], costs)


def energy(labels: Int[np.ndarray, "N"], problem: Problem) -> float:
    """As `grid.energy`, in float64."""
    unary, i, j, weight, costs = problem
    pairs = weight * costs[labels[i], labels[j]]
    return float(unary[np.arange(len(labels)), labels].sum() + pairs.sum())


def expansion(label: int, labels: Int[np.ndarray, "N"], problem: Problem) -> Bool[np.ndarray, "N"]:
    """The pixels that take the label in the best move."""
    unary, i, j, weight, costs = problem
    here, there = labels[i], labels[j]
    # y is 1 for pixels that take it. What a pair costs is
    #     keep + (one − keep) y_i + (both − one) y_j + excess (1 − y_i) y_j
    keep, both = costs[here, there], costs[label, label]
    one, other = costs[label, there], costs[here, label]
    excess = np.maximum(one + other - keep - both, 0)  # but for rounding it is
    take = unary[:, label] - unary[np.arange(len(labels)), labels]
    take += np.bincount(i, weight * (one - keep), len(take))
    take += np.bincount(j, weight * (both - one), len(take))
    return least(take, i, j, weight * excess)


def least(
    take: Float[np.ndarray, "N"],
    i: Int[np.ndarray, "P"],
    j: Int[np.ndarray, "P"],
    excess: Float[np.ndarray, "P"],
) -> Bool[np.ndarray, "N"]:
    """The y ∈ {0, 1}ᴺ for which Σ_i take_i y_i + Σ_ij excess_ij (1 − y_i) y_j is least, where no
    excess is below zero: 0 on the source's side of a minimum cut, 1 on the sink's."""
    points = len(take)
    source, sink, place = points, points + 1, np.arange(points)
    tails = np.concatenate([i, np.where(take > 0, source, place)])
    heads = np.concatenate([j, np.where(take > 0, place, sink)])
    # One that prefers its own by more than all its pairs will do so: no need for large capacities.
    most = 2 * (np.bincount(i, excess, points) + np.bincount(j, excess, points)).max()
    capacities = np.concatenate([excess, np.minimum(abs(take), most or 1)])
    capacities = np.rint(capacities * (LARGEST / (capacities.max() or 1))).astype(np.int32)
    graph = csr_array((capacities, (tails, heads)), shape=(points + 2, points + 2))
    residual = (graph - maximum_flow(graph, source, sink).flow).T.tocsr()
    residual.eliminate_zeros()
    # Where both are as good, 0.
    return np.isin(place, breadth_first_order(residual, sink, return_predecessors=False))


def check_metric(costs: Float[np.ndarray, "K K"]) -> None:
    """ValueError unless moves are minimum cuts: μ(a, a) + μ(b, c) ≤ μ(b, a) + μ(a, c) for all
    labels, which for a diagonal of zeros is the triangle inequality."""
    K = len(costs)
    if not np.isfinite(costs).all():
        raise ValueError("compatibility: some are NaN or infinite")
    direct = np.diag(costs)[:, None, None] + costs  # [a b c]
    around = costs[:, :, None] + costs[:, None, :]
    a, b, c = np.unravel_index((direct - around).argmax(), (K, K, K))
    if direct[a, b, c] > around[a, b, c] + 1e-6 * abs(costs).max():
        raise ValueError(
            f"compatibility is no metric: with labels {a}, {b}, {c}, μ({a}, {a}) + μ({b}, {c}) is "
            f"{direct[a, b, c]:g}, above μ({b}, {a}) + μ({a}, {c}), {around[a, b, c]:g}"
        )
