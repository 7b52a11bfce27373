"""`sift_s`: a conversational reply to what was said; the model sees the words alone."""

from include.modes.mode import Mode, bare_transcript

MODE = Mode(
    name="sift_s",
    title="Conversational reply",
    purpose="Reply to what the person says, from the words alone.",
    user_message=bare_transcript,
)
