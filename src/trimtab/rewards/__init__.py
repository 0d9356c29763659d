"""Scorers behind one call: a reward model, rules, checkers, an encoder judge."""
