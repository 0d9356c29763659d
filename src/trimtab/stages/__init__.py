"""Stages: (inputs, settings, run) -> artifact. One file a stage; the folder is the registry."""
