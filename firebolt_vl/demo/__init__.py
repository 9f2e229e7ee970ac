"""A page in the browser on which any checkpoint is asked: `firebolt demo`."""
