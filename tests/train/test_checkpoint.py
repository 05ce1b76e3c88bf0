import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.train.checkpoint import Checkpoints, load_variables
from jaxseg.train.step import State, init_state

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.trace(0.9))


def make_state(step, ema=False, width=3):
    rng = np.random.default_rng(step)
    params = {"conv": {"kernel": rng.random((2, width)), "bias": rng.random(width)}}
    params = jax.tree.map(np.float32, params)
    variables = {"params": params, "batch_stats": {"norm": {"mean": np.float32(rng.random(3))}}}
    state = init_state(variables, OPTIMIZER, ema)
    grads = jax.tree.map(jnp.ones_like, state.params)
    _, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    state = state._replace(step=np.int32(step), opt_state=opt_state)
    return jax.tree.map(np.asarray, state)


def write(folder, *steps, best=(), keep=2, **options):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(make_state(step, **options), {"at": step}, best=step in best)
    checkpoints.close()


def restore(folder, like):
    checkpoints = Checkpoints(folder, 2)
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


@pytest.mark.parametrize("ema", [False, True])
def test_round_trip_is_exact(tmp_path, ema):
    write(tmp_path, 1, 2, 3, ema=ema)
    state, notes = restore(tmp_path, make_state(0, ema=ema))
    assert notes["at"] == 3
    assert isinstance(state, State)
    expected = make_state(3, ema=ema)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path, make_state(0)) is None
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_variables(tmp_path)


def test_the_last_few_and_the_best_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 4, best=(1, 2))
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == ["3", "4"]
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["2"]
    variables, step = load_variables(tmp_path)
    assert step == 2
    expected = make_state(2)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], expected.params)
    assert variables["batch_stats"].keys() == {"norm"}
    assert load_variables(tmp_path, which="last")[1] == 4


def test_averaged_params_are_loaded_where_there_are_any(tmp_path):
    state = make_state(1, ema=True)
    state = state._replace(ema=jax.tree.map(lambda p: p + 1, state.params))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {})
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, load_variables(tmp_path)[0]["params"], state.ema)


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(folder):
    path = largest_file(folder / "params")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
    path = largest_file(folder / "params")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def remove(folder):
    for path in (folder / "params").rglob("*ocdbt"):
        path.unlink() if path.is_file() else None


@pytest.mark.parametrize("damage", [cut, flip, remove])
def test_a_damaged_last_one_falls_back(tmp_path, damage):
    write(tmp_path, 1, 2)
    damage(tmp_path / "last" / "2")
    with pytest.warns(UserWarning, match=r"last/2 is damaged .* falling back"):
        state, notes = restore(tmp_path, make_state(0))
    assert (state.step, notes["at"]) == (1, 1)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(1))


def test_all_damaged_is_an_error(tmp_path):
    write(tmp_path, 1, 2)
    cut(tmp_path / "last" / "1")
    cut(tmp_path / "last" / "2")
    with (
        pytest.warns(UserWarning, match="falling back"),
        pytest.raises(ValueError, match="every checkpoint"),
    ):
        restore(tmp_path, make_state(0))


def test_a_half_written_one_does_not_count(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "last" / "2.orbax-checkpoint-tmp-0" / "params").mkdir(parents=True)
    assert restore(tmp_path, make_state(0))[0].step == 1


def test_another_model_is_refused(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(ValueError, match="arrays of other shapes"):
        restore(tmp_path, make_state(0, width=4))
    with pytest.raises(ValueError, match=r"only one of it and this run has \['ema'\]"):
        restore(tmp_path, make_state(0, ema=True))
