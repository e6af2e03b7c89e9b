"""This folder is on sys.path, so the tests in its subfolders import the helper modules here by their names."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("model_state")
