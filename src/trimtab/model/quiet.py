"""Transformers without its chatter: progress bars off, and only errors logged, while something is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' log and progress bars (and the hub's) inside the block, and restore both afterwards.

    What must not be hidden, weights that are missing or left over, is asked of the loader by ``load`` itself.
    """
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
