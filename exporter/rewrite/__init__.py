"""Rewriting: from a dense model and a circuit to a smaller model that computes the ablated model's logits."""
