"""The cache of compiled functions: damaged, and without a place."""

import importlib.util

import numba
import pytest

from tests.helpers.surroundings import in_fork, no_rights

CODE = """
from detector.runtime.compiled import compiled

@compiled
def add_one(x):
    return x + 1
"""


@pytest.fixture
def compile_again(tmp_path, monkeypatch):
    """compile_again() -> 1 if the function came from the cache in tmp_path/cache, else 0."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "module.py").write_text(CODE)
    spec = importlib.util.spec_from_file_location("module", tmp_path / "module.py")

    def again() -> int:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.add_one(1) == 2
        return sum(module.add_one.stats.cache_hits.values())

    return again


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("kept", [0, 1 / 2])
def test_a_truncated_cache_is_made_anew(compile_again, tmp_path, suffix, kept):
    assert [compile_again(), compile_again()] == [0, 1]
    (path,) = tmp_path.glob(f"cache/*/*.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert [compile_again(), compile_again()] == [0, 1]


def test_without_a_place_for_the_cache_a_function_is_compiled(compile_again, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")  # numba looks beside the module, then at home

    def without_rights() -> int:
        no_rights()()
        return compile_again() + compile_again()

    monkeypatch.chdir(tmp_path)
    try:
        assert in_fork(without_rights) == 0
    finally:
        tmp_path.chmod(0o755)
