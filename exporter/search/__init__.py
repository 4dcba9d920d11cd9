"""The search for the circuit."""
