"""Studies: many jobs, and what they show together."""
