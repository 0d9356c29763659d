"""Win rates, intervals, agreement. NumPy and SciPy only."""
