"""torchvision's names and layouts <-> ours, by the tables of the families."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.types import Variables
from jaxseg.weights.files import WeightsError
from jaxseg.weights.tables import FAMILIES, Leaf, Rule, translate


def from_torchvision(
    state: dict[str, np.ndarray], name_of_file: str
) -> tuple[Variables, list[str], str]:
    """(variables, the keys that these leave over, family) of a state dict.

    The family is the one whose table knows the most keys, the first of equals. WeightsError where
    none knows most of them, and where an array has not the axes of its layer.
    """
    known = {family: _find_all(state, table) for family, table in FAMILIES.items()}
    family = max(known, key=lambda family: len(known[family]))
    found = known[family]
    if 2 * len(found) <= len(state) or not state:
        unknown = [key for key in state if key not in found]
        raise WeightsError(
            f"{name_of_file}: {len(unknown)} of {len(state)} keys, such as "
            f"{', '.join(unknown[:3])}, are unknown even to the nearest family, {family}; expected "
            f"one of {', '.join(FAMILIES)}"
        )
    arrays = {}
    for key, (rule, leaf, module) in found.items():
        if module and leaf.ours:
            collection, name = leaf.ours.split("/")
            where = f"{name_of_file}: {key}"
            arrays[f"{collection}/{module}/{name}"] = _to_ours(state[key], rule, leaf, where)
    left_over = [key for key in state if key not in found or not found[key][2]]
    return unflatten_dict(arrays, sep="/"), left_over, family


def to_torchvision(variables: Variables, family: str) -> dict[str, np.ndarray]:
    """The state dict of a network of a family in FAMILIES, ordered as the table is: the inverse of
    `from_torchvision`. What torch has and we have not is 0. WeightsError for another family, and
    for an array that its table does not know."""
    if family not in FAMILIES:
        raise WeightsError(f"family is {family!r}, expected one of {', '.join(FAMILIES)}")
    rest, state = flatten(variables), {}
    for rule in FAMILIES[family]:
        leaves = {leaf.ours: leaf for leaf in rule.layer}
        for path in list(rest):
            collection, *module, name = path.split("/")
            leaf = leaves.get(f"{collection}/{name}")
            if leaf is None or rule.ours is None or rule.old:
                continue
            torch = translate("/".join(module), rule.ours, rule.torch)
            if torch is None:
                continue
            array = _to_torch(np.asarray(rest.pop(path)), rule, leaf, path)
            state[f"{torch}.{leaf.torch}"] = array
            for more in (leaf for leaf in rule.layer if leaf.always):
                dtype = array.dtype if more.ours else np.int64
                zeros = np.zeros(array.shape[: len(more.axes)], dtype)
                state.setdefault(f"{torch}.{more.torch}", zeros)
    if rest:
        raise WeightsError(f"{family} has no place for {', '.join([*rest][:3])} ({len(rest)} such)")
    return state


def lacking(state: dict[str, np.ndarray], family: str) -> list[str]:
    """The layers that every network of a family has and this state dict has not, as its table names
    them."""
    table = FAMILIES[family]
    found = {rule for rule, _, _ in _find_all(state, table).values()}
    words = {rule.needed for rule in found}
    return [
        rule.torch
        for rule in table
        if rule.needed and rule.ours and not rule.old
        if (rule not in found if rule.needed is True else rule.needed not in words)
    ]


def flatten(tree: Variables) -> Variables:
    """{"params/backbone/…": array} of nested dicts."""
    return flatten_dict(tree, sep="/")


def _find_all(
    state: dict[str, np.ndarray], table: tuple[Rule, ...]
) -> dict[str, tuple[Rule, Leaf, str]]:
    """{key: its rule, its leaf, our module (empty where we have none)} of the keys in the table."""
    found = {}
    for module in dict.fromkeys(key.rpartition(".")[0] for key in state):
        for rule in table:
            ours = translate(module, rule.torch, rule.ours or "")
            if ours is not None:
                keys = {f"{module}.{leaf.torch}": leaf for leaf in rule.layer}
                found |= {key: (rule, keys[key], ours) for key in keys if key in state}
                break
    return found


def _to_ours(array: np.ndarray, rule: Rule, leaf: Leaf, where: str) -> np.ndarray:
    if rule.window and len(leaf.axes) == 4:
        area = rule.window**2
        if array.ndim != 2 or array.shape[1] % area:
            raise WeightsError(f"{where} is {array.shape}, expected [F C·{area}]")
        array = array.reshape(array.shape[0], -1, rule.window, rule.window)
    if array.ndim != len(leaf.axes):
        raise WeightsError(f"{where} is {array.shape}, expected {len(leaf.axes)} axes")
    return array.transpose(leaf.axes)


def _to_torch(array: np.ndarray, rule: Rule, leaf: Leaf, where: str) -> np.ndarray:
    if array.ndim != len(leaf.axes):
        raise WeightsError(f"{where} is {array.shape}, expected {len(leaf.axes)} axes")
    array = array.transpose(np.argsort(leaf.axes))
    if rule.window and array.ndim == 4:
        if array.shape[2:] != (rule.window, rule.window):
            raise WeightsError(f"{where} has not a window of {rule.window}×{rule.window}")
        array = array.reshape(array.shape[0], -1)
    return array
