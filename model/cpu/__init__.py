"""Parts that make CPUs fast: weights in other layouts and dtypes, two modules of the backbones in fewer calls."""
