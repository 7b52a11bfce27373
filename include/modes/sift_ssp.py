"""`sift_ssp`: an empathetic reply that is aware of the speaker's tone; the model sees words and labels."""

from include.modes.mode import Mode, audio_context

MODE = Mode(
    name="sift_ssp",
    title="Empathetic reply",
    purpose="Reply to what the person says, aware of tone and emotion.",
    user_message=audio_context,
)
