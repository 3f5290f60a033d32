"""threedim: 3DiM (Novel View Synthesis with Diffusion Models, arXiv 2210.04628) in JAX and Flax.

In a notebook::

    import threedim

    model = threedim.load("runs/demo")
    targets = threedim.orbit(range(0, 360, 45), elevation=20, radius=2.6, K=camera.K)
    views = model.sample(image, camera, targets, seed=0)
"""

from etils import epy as _epy

# Imported on first use: worker processes that only render or decode need no network.
with _epy.lazy_api_imports(globals()):
    from threedim.cameras import Camera, intrinsics, look_at, orbit
    from threedim.diffusion import Process
    from threedim.models.concat_unet import ConcatUNet
    from threedim.models.unet import NetworkDenoiser
    from threedim.models.xunet import XUNet
    from threedim.sampling import Sampler, Settings
    from threedim.trained import Model, load
