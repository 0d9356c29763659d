"""Types of options that several rules share; what does not fit them is refused before anything runs."""

from __future__ import annotations

from typing import Annotated

import regex
from pydantic import AfterValidator, Field

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _readable(pattern: str) -> str:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_readable)]
