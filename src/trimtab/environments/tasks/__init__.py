"""Ready text tasks, one file each; the folder is the registry (``trimtab.environments.TASKS``).

The data are small and were written for the project, in our own format (``data/``): they show that a task works, and
measure nothing. A right answer stands in ``meta["truth"]``, where the project's rules look for it too.
"""
