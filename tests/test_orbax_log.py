"""What Orbax and TensorStore say of failures that are reported anyway is not shown."""

import sys
import threading
import types

from threedim.training.orbax_log import quiet_orbax


def test_what_tensorstore_reports_too_late_is_dropped(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(str(unraisable.exc_value)))
    quiet_orbax()
    quiet_orbax()
    for message in ("Event loop is closed", "another"):
        unraisable = types.SimpleNamespace(exc_value=RuntimeError(message))
        thread = threading.Thread(target=sys.unraisablehook, args=(unraisable,))
        thread.start()
        thread.join()
    assert shown == ["another"]
