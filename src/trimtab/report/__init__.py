"""The report: curves, health readings, samples and verdicts of a run, in one self-contained page."""
