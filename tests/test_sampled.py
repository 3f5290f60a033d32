"""Folders of sampled views; tests/test_protocol.py scores them."""

import pytest

from threedim.errors import UserError
from threedim.evaluation import sampled


def test_samples_json_of_an_orbit_or_damaged(tmp_path):
    (tmp_path / "views").mkdir()
    (tmp_path / "samples.json").write_text('{"settings": {"cameras": "orbit"}, "objects": {}}')
    with pytest.raises(UserError, match="holds an orbit"):
        sampled.SampledViews(tmp_path)
    (tmp_path / "samples.json").write_text('{"settings": {}, "objects": {"a": {"input_views": [0]}}}')
    with pytest.raises(UserError, match=r"samples.json is damaged \(it has no 'target_views'"):
        sampled.SampledViews(tmp_path)
