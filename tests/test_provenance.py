"""Where results come from."""

import re

from threedim import provenance


def test_commit_is_of_this_code(monkeypatch, tmp_path):
    known = provenance.commit()
    assert known is None or re.fullmatch("[0-9a-f]{40}", known["hash"])
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "a/b/provenance.py"))
    (tmp_path / "a/b").mkdir(parents=True)
    assert provenance.commit() is None
