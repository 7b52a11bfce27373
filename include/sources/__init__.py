"""The registry of sources: every module of this package that defines RECIPE, by name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from include.sources.recipe import SourceRecipe

_NOT_SOURCES = {"recipe", "reader"}

RECIPES: dict[str, SourceRecipe] = {
    module.RECIPE.name: module.RECIPE
    for module in (
        import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__) if info.name not in _NOT_SOURCES
    )
}
"""Recipes by source name, in alphabetical order."""
