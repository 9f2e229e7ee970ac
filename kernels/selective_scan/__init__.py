"""Mamba's selective scan, and one step of it in place."""

from .op import selective_scan, selective_state_update

__all__ = ["selective_scan", "selective_state_update"]
