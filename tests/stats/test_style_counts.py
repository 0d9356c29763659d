"""What an answer looks like, and covariates that turn round with the pair."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.style import style_counts, style_covariates

TEXT = """# Title
Some **bold** text and 2 * 3 * 4.

- one
* two
  3. three
## More __bold here__ #not
```python
# a comment, **no** bold
- x
```
#hashtag
"""


def test_counts() -> None:
    assert style_counts([TEXT, ""]).tolist() == [[len(TEXT), 2, 3, 2], [0, 0, 0, 0]]


def test_covariates() -> None:
    first, second = style_counts([TEXT, "short", "same"]), style_counts(["plain", "a longer answer", "same"])
    there, back = style_covariates(first, second), style_covariates(second, first)
    assert there == pytest.approx(-back)
    assert there[2].tolist() == [0, 0, 0, 0]
    assert np.mean(there**2, axis=0) == pytest.approx([1, 1, 1, 1])
    assert style_covariates([[5.0]], [[5.0]]).tolist() == [[0.0]]
    # (3 - 1) / 5 and (1 - 3) / 5, scaled to size 1
    assert style_covariates([[3.0], [1.0]], [[1.0], [3.0]]).tolist() == [[1.0], [-1.0]]


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="two tables"):
        style_covariates([1.0], [1.0])
    with pytest.raises(DataError, match="negative"):
        style_covariates([[-1.0]], [[1.0]])
