"""From prompts to responses: engines, the device lease, and the identity of what generates."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from include.generation.engine import Engine
    from include.schema import LlmServer
    from include.settings import Settings


def make_engine(settings: Settings, server: LlmServer | None = None) -> Engine:
    """Make the engine that the settings name; nothing is loaded before its `load()`.

    Args:
        settings: `engine` names it.
        server: Where the engine `openai` asks; the others have no use for it.

    Raises:
        ValueError: If the engine's own settings are wrong, or it needs a server and there is none.
    """
    match settings.engine:
        case "fake":
            from include.generation.fake import FakeEngine

            return FakeEngine(settings, settings.fake_batch_s)
        case "transformers":
            from include.generation.transformers_engine import TransformersEngine

            return TransformersEngine(settings)
        case "openai":
            from include.generation.openai_engine import OpenAIEngine
            from include.schema import BadInputError

            if server is None:
                raise BadInputError("SIFT_ENGINE=openai needs a server: set the Airflow connection llm_server")
            return OpenAIEngine(settings, server)
