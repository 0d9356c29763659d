"""Several methods from one start, on the same data and budget, over several seeds: one row a (method, seed), one table.

    stages:                         # up to the start, as in any recipe
      sft: {data: mine.jsonl}
    bakeoff:
      start: sft                    # or base: the recipe's model as it is, and no stages are needed
      seeds: [0, 1, 2]
      common: {stage: preference, data: pairs.jsonl}       # for every method that names no stage of its own
      methods: {dpo: {method: dpo}, more: {stage: sft, data: mine.jsonl}}
      evaluate: {prompts: heldout.jsonl, judge: judge.jsonl}        # or rules, or reward, or several of them
      minutes: 5                    # each method's steps are chosen so that training takes as long (or: tokens)

Without ``minutes`` and ``tokens`` every method trains for as long as its own settings say; the table tells how many
answers it sampled, where it samples.

Every method runs in a process of its own, so that its peak memory is its own, and leaves the very recipe that was run.
Rows are appended to a file as they are finished; what stands there is not run again. A row says what it rests on, so
that one of other settings, other data or other code is never taken for one of this bake-off (``identity``).
"""

from trimtab.bakeoff.identity import Identity, identify
from trimtab.bakeoff.plan import Bakeoff, Contest, load_bakeoff
from trimtab.bakeoff.rows import Row, left_out, read_rows, rows_of
from trimtab.bakeoff.run import affordable, run_bakeoff

__all__ = [
    "Bakeoff", "Contest", "Identity", "Row", "affordable", "identify", "left_out", "load_bakeoff", "read_rows",
    "rows_of", "run_bakeoff",
]  # fmt: skip
