"""Checks that an exported file must pass to stay on disk: the exactness gate and its oracle, the precision gate."""
