"""Load and save models, tree attention, roles on one trunk, sampling."""
