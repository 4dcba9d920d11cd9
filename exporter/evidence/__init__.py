"""Evidence for a circuit: its metrics on held-out prompts, and its latency against the dense model's."""
