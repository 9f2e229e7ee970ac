"""What only makes CPUs fast: weights in other layouts and dtypes, and two modules of the backbones in fewer calls."""
