"""Cut the vocabulary to a task: the embeddings of its tokens, the unembedding of its answers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from exporter.network.model import CircuitModel
from exporter.network.norm import Norm


def cut_embedding(model: CircuitModel, vocabulary: Sequence[int]) -> Tensor:
    """The rows of W_E for some token ids, in their order: (token, d_model)."""
    return model.W_E[list(vocabulary)]


def cut_unembedding(model: CircuitModel, answer_ids: Sequence[int]) -> tuple[Norm, Tensor, Tensor | None]:
    """The rows of W_U for some answers, with the final norm's gain and bias folded in; products are in float64.

    Returns the norm without gain and bias, the rows, (answer, d_model), and their bias, (answer,) or None. The rows are
    a copy: folding the gain into a tied W_U itself would change W_E.
    """
    norm, W_U = model.final_norm, model.W_U.detach()[list(answer_ids)]
    bias = None if norm.bias is None else (W_U.double() @ norm.bias.double()).to(W_U.dtype)
    W_U = W_U if norm.weight is None else (W_U.double() * norm.weight.double()).to(W_U.dtype)
    return Norm(None, eps=norm.eps, rms=norm.rms), W_U, bias
