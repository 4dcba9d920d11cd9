"""Which scales an int8 file has, by who reads it."""

from __future__ import annotations

import pytest

from exporter.outputs.targets.scales import BATCHING, choose_scales


@pytest.mark.parametrize("reader", sorted(BATCHING))
def test_readers_that_batch_requests_get_scales_by_token(reader: str) -> None:
    assert choose_scales(None, "int8", ["optimum", reader]) == "token"
    assert choose_scales("tensor", "int8", [reader]) == "tensor"  # as asked for
    assert choose_scales(None, "fp32", [reader]) == "tensor"  # there are none


def test_others_get_one_scale() -> None:
    assert {"transformers-js", "triton"} == BATCHING
    assert choose_scales(None, "int8") == choose_scales(None, "int8", ["optimum"]) == "tensor"
    assert choose_scales("token", "int8") == "token"
