"""Compiled programs of which a killed process has written half."""

import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from threedim import compilation_cache


def test_a_damaged_entry_is_replaced_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # undoes the change below
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before, shown = {name: getattr(jax.config, name) for name in names}, []

    def compiled():
        jax_cache.reset_cache()
        jax.clear_caches()
        jax.jit(lambda x: 3 * x + 1)(2.0)
        return {path: path.read_bytes() for path in tmp_path.glob("*-cache")}

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: shown.append(str(message))
        compilation_cache.use(str(tmp_path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        try:
            whole = compiled()
            assert whole
            for path, content in whole.items():
                path.write_bytes(content[:100])
            again = compiled()
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            jax_cache.reset_cache()
        warnings.warn("another one", stacklevel=1)
    assert again.keys() == whole.keys()
    assert all(len(content) > 100 for content in again.values())
    assert shown == ["another one"]
