"""Data sets for the ablations, selected by name: ``--config=configs/ablations/regression.py:cars``."""

import ml_collections

from threedim.configs import demo, gpu64, shapes16, shapes32, srn_cars, srn_chairs_star
from threedim.errors import UserError

_BY_NAME = {"cars": srn_cars, "chairs_star": srn_chairs_star, "demo": demo, "gpu64": gpu64}
_BY_NAME |= {"shapes16": shapes16, "shapes32": shapes32}


def whole_model(data: str) -> ml_collections.ConfigDict:
    """The full 3DiM config for a data set; each ablation removes something from it.

    Raises:
      UserError: if the name is unknown.
    """
    if data not in _BY_NAME:
        raise UserError(f"ablations exist for {', '.join(sorted(_BY_NAME))}, not for {data!r}")
    return _BY_NAME[data].get_config()
