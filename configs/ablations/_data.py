"""The data that an ablation can be trained on, by name: ``--config=configs/ablations/regression.py:cars``."""

import ml_collections

from configs import demo, shapes16, srn_cars, srn_chairs_star
from threedim.errors import UserError

_BY_NAME = {"cars": srn_cars, "chairs_star": srn_chairs_star, "demo": demo, "shapes16": shapes16}


def whole_model(data: str) -> ml_collections.ConfigDict:
    """The config of the whole 3DiM on this data, of which an ablation takes something away.

    Raises:
      ValueError: if there is no data of this name.
    """
    if data not in _BY_NAME:
        raise UserError(f"there are ablations for the data {', '.join(sorted(_BY_NAME))}, not for {data!r}")
    return _BY_NAME[data].get_config()
