"""Trimtab turns a language model into one that people prefer."""

from importlib.metadata import version

__version__ = version("trimtab")
