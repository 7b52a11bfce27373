"""`sit_ssp`: a one-sentence description of what is heard; the model sees words and labels."""

from include.modes.mode import Mode, audio_context

MODE = Mode(
    name="sit_ssp",
    title="Description",
    purpose='Describe all that can be heard, in one sentence that starts with "Sounds like".',
    user_message=audio_context,
    instruction="Describe all information you can hear: ",
)
