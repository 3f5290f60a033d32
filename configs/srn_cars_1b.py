"""SRN cars with the 1.3B model [7.1]: srn_cars.py with 448 channels."""

from threedim.configs import srn_cars


def get_config():
    c = srn_cars.get_config()
    c.model.ch = 448
    return c
