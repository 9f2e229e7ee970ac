"""A browser without a window, for tests of pages: one that is installed, else playwright's own."""

import os
import shutil

# Programs that playwright drives as its own Chromium.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def installed() -> str | None:
    """Return the path of the first of these programs that is there."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright):
    """Start it. As root Chromium runs without a sandbox alone."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    return playwright.chromium.launch(executable_path=installed(), args=["--no-sandbox"] if root else [])
