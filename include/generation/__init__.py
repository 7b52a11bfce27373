"""From prompts to responses: engines, the device lease, and the identity of what generates."""

from __future__ import annotations

from include.generation.engine import Engine
from include.settings import Settings


def make_engine(settings: Settings) -> Engine:
    """Make the engine that the settings name; nothing is loaded before its `load()`.

    Raises:
        ValueError: If the engine's own settings are wrong.
    """
    match settings.engine:
        case "fake":
            from include.generation.fake import FakeEngine

            return FakeEngine(settings)
        case "transformers":
            from include.generation.transformers_engine import TransformersEngine

            return TransformersEngine(settings)
