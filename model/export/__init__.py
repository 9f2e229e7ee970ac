"""Graphs of a model for engines other than PyTorch, as files."""
