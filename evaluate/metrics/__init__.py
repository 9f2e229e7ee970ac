"""Metrics: pure functions of answers and truth. They import nothing but Python's own library."""
