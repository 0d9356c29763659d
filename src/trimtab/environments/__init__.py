"""Tasks to learn from by trying: the classic grid world, and conversations with one or several turns.

    grid       a map, a diamond, traps; what is best in it, computed exactly
    classic    REINFORCE, actor-critic and Q-learning, on the same functions as the text methods (this one needs torch)
    text       the interface of text tasks: the observation is the conversation, the action an answer
    tasks/     ready text tasks, one file each

All of them are Gymnasium environments. Gymnasium is imported by these modules and by nothing else.
"""

from __future__ import annotations

from trimtab.registry import TASKS

__all__ = ["TASKS"]
