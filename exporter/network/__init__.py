"""The one small network that dense and rewritten models are made of."""
