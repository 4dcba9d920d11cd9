"""Find, rebuild, export and measure the circuit of one task in a language model."""
