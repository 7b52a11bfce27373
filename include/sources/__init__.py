"""The registry of sources: every module of this package that defines RECIPE, by name."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

from include.sources.recipe import SourceRecipe

NOT_SOURCES = {"corpus", "pages", "reader", "recipe"}
"""Modules of this package that are no corpus."""


def _load_recipe(name: str) -> SourceRecipe:
    module = import_module(f"{__name__}.{name}")
    recipe: SourceRecipe = module.RECIPE
    if recipe.name != name:
        raise ValueError(f"include/sources/{name}.py: RECIPE is named {recipe.name!r}; name it {name!r} as its module")
    return replace(recipe, card=module.__doc__ or "")


RECIPES: dict[str, SourceRecipe] = {
    info.name: _load_recipe(info.name) for info in iter_modules(__path__) if info.name not in NOT_SOURCES
}
"""Recipes by source name, in alphabetical order."""
