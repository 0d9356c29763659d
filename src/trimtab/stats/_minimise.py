"""A smooth function with its gradient, made least: SciPy's L-BFGS-B with the types of this room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize

from trimtab.stats.battles import Floats


def minimise(
    objective: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    *,
    bounds: Sequence[tuple[float | None, float | None]] | None = None,
    options: Mapping[str, float] | None = None,
) -> tuple[Floats, float]:
    """Return where ``objective`` (value, gradient) is least, and its value there."""
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=dict(options or {}))  # type: ignore[call-overload]
    return np.asarray(found.x, dtype=np.float64), float(found.fun)
