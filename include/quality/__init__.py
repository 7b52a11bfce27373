"""Rules about what was written: one function per rule."""
