"""Run folders: what a command writes, whole or not at all, with a manifest of where it came from."""
