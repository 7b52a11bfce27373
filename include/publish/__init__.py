"""From accepted responses and published audio to a release that standard readers open."""
