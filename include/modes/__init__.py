"""The registry of modes: every module of this package that defines MODE, by name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from include.modes.mode import Mode

MODES: dict[str, Mode] = {
    module.MODE.name: module.MODE
    for module in (import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__) if info.name != "mode")
}
"""Modes by name, in alphabetical order, which is also the order of a clip's rows in a release."""
