"""Our ratings and alpha against independent implementations, where these are installed (for development only)."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.stats.agreement import krippendorff_alpha
from trimtab.stats.battles import battles
from trimtab.stats.bradley_terry import fit
from trimtab.stats.plackett_luce import fit_rankings


def games() -> tuple[list[str], list[str], np.ndarray]:
    rng = np.random.default_rng(0)
    theta = rng.normal(size=8)
    a = rng.integers(8, size=600)
    b = (a + 1 + rng.integers(7, size=600)) % 8
    y = np.where(rng.random(600) < 0.2, 0.5, (rng.random(600) < 1 / (1 + np.exp(theta[b] - theta[a]))).astype(float))
    return [f"m{i}" for i in a], [f"m{i}" for i in b], y


def test_evalica_bradley_terry_and_newman() -> None:
    evalica = pytest.importorskip("evalica", reason="evalica is here to compare with only")
    first, second, y = games()
    winners = [evalica.Winner.X if v == 1 else evalica.Winner.Y if v == 0 else evalica.Winner.Draw for v in y]
    names = sorted({*first, *second})
    for function, ties in ((evalica.bradley_terry, "half_win"), (evalica.newman, "davidson")):
        scores = np.log(function(first, second, winners, tolerance=1e-12, limit=10_000).scores.loc[names].to_numpy())
        if ties == "half_win":
            assert fit(battles(first, second, y)).theta == pytest.approx(scores - scores.mean(), abs=1e-5)
        else:  # Newman's model of ties is Davidson's
            assert fit(battles(first, second, y), ties="davidson").theta == pytest.approx(
                scores - scores.mean(), abs=1e-4
            )


def test_evalica_alpha() -> None:
    evalica = pytest.importorskip("evalica", reason="evalica is here to compare with only")
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(1)
    table = np.where(rng.random((60, 4)) < 0.3, np.nan, rng.integers(1, 6, size=(60, 4)).astype(float))
    for level in ("nominal", "ordinal", "interval", "ratio"):
        theirs = evalica.alpha(pandas.DataFrame(table.T), distance=level).alpha
        assert krippendorff_alpha(table, level=level).alpha == pytest.approx(theirs, abs=1e-9)


def test_choix_plackett_luce() -> None:
    choix = pytest.importorskip("choix", reason="choix is here to compare with only")
    rng = np.random.default_rng(2)
    theta = rng.normal(size=6)
    drawn = np.argsort(-(theta + rng.gumbel(size=(150, 6))), axis=1)[:, :4]
    theirs = choix.ilsr_rankings(6, [tuple(row) for row in drawn.tolist()], max_iter=1000)
    ours = fit_rankings([[[str(i)] for i in row] for row in drawn])
    assert ours.theta == pytest.approx(theirs - theirs.mean(), abs=1e-5)
