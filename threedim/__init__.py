"""threedim: 3DiM (Novel View Synthesis with Diffusion Models, arXiv 2210.04628) in JAX and Flax.

In a notebook::

    import threedim

    model = threedim.load("shapes64")
    view = threedim.photo("chair.png", elevation=20)
    views = model.sample(view, threedim.orbit(24), seed=0, progress=True)
    views.save("chair")
    views.show()
"""

from etils import epy as _epy

# Imported on first use: worker processes that only render or decode need no network.
with _epy.lazy_api_imports(globals()):
    from threedim.api import Model, Sampled, load
    from threedim.cameras import Camera, intrinsics, look_at, orbit
    from threedim.diffusion import Process
    from threedim.models.concat_unet import ConcatUNet
    from threedim.models.unet import NetworkDenoiser
    from threedim.models.xunet import XUNet
    from threedim.photos import View, photo
    from threedim.sampling import Sampler, Settings
