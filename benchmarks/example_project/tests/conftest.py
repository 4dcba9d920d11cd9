"""The model under test: what make_model.py wrote, or makes now."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from make_model import MODEL, make_model  # noqa: E402


@pytest.fixture(scope="session")
def model() -> Path:
    """An ONNX file."""
    return MODEL if MODEL.is_file() else make_model()
