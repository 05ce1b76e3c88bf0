"""Eight CPU devices, strict promotion, and where the real data and reference numbers are."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

# Runs compile the same programs again and again; processes that tests start share them, too.
_compiled = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Most of what is compiled here runs but once: without these optimisations the tests take two thirds
# of the time. An XLA that does not know them ends its process, so another one is asked first.
_quick = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
if "XLA_FLAGS" not in os.environ:
    _command = [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"]
    _asked = subprocess.run(_command, env=os.environ | {"XLA_FLAGS": _quick}, capture_output=True)
    os.environ["XLA_FLAGS"] = _quick if _asked.returncode == 0 else ""

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

ROOT = Path(__file__).parents[1]


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(f"{variable} names no folder: {folder}")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real datasets, one `.tar.gz` a set."""
    return _folder("JAXSEG_DATA", "data")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of reference numbers from published implementations."""
    return _folder("JAXSEG_FIXTURES", "fixtures")
