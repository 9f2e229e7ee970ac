"""A page on which a model answers in the browser, from any server of static files."""

from .page import Page, export_page

__all__ = ["Page", "export_page"]
