"""`python -m firebolt_vl.train.foveated_tiny`: see recipe.py."""

from .recipe import main

if __name__ == "__main__":
    main()
