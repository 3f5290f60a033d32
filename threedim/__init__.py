"""threedim: 3DiM (Novel View Synthesis with Diffusion Models, arXiv 2210.04628) in JAX and Flax.

In a notebook::

    import threedim

    model = threedim.load("runs/demo")
    targets = threedim.orbit(range(0, 360, 45), elevation=20, radius=2.6, K=camera.K)
    views = model.sample(image, camera, targets, seed=0)
"""

import importlib

# Loaded when first used: worker processes that only render or decode need no network.
_HOME = {
    "Camera": "cameras",
    "intrinsics": "cameras",
    "look_at": "cameras",
    "orbit": "cameras",
    "Process": "diffusion",
    "ConcatUNet": "models.concat_unet",
    "NetworkDenoiser": "models.unet",
    "XUNet": "models.xunet",
    "Settings": "sampling",
    "sample_view": "sampling",
    "sample_views": "sampling",
    "Model": "trained",
    "load": "trained",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'threedim' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"threedim.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
