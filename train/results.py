"""Results of examinations in files."""

import json
from pathlib import Path

import numpy as np

from ..files.writing import write_text

RESULTS = "results.json"


def write_results(results: dict, file: Path) -> None:
    """Write nested results as JSON, every number to four places."""
    write_text(file, json.dumps(rounded(results), indent=1) + "\n")


def rounded(value):
    """Every number in nested results to four places."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float | np.floating) else value
