"""Files appear whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from perturb.files import write_atomic


def test_write_atomic_replaces_whole_files_and_cleans_up(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "figure.png"
    write_atomic(path, b"one")
    write_atomic(path, "two")
    assert path.read_text() == "two"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomic(path, "three")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]
