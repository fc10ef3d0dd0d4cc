"""Parity runs only where it is asked for: the reference needs torch."""

from __future__ import annotations

import pytest


def pytest_addoption(parser):
    parser.addoption("--run-parity", action="store_true", help="run the comparison with transformers ([reference] extra)")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-parity", default=False):
        return
    skip = pytest.mark.skip(reason="needs the [reference] extra: make parity")
    for item in items:
        if "parity" in item.path.parts:
            item.add_marker(skip)
