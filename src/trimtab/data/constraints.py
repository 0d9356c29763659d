"""Prompts made harder by constraints that code can check (``rewards/constraints``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from trimtab.errors import ConfigError, DataError, did_you_mean
from trimtab.records.types import Group, Message
from trimtab.rewards.constraints import CONSTRAINTS, ask, conflict
from trimtab.seeds import derive

ROUNDS = 20
"""Orders of the kinds that are tried before a draw gives up."""
TRIES = 5
"""Options that are tried of a kind that does not go with the constraints so far."""


def draw(group: Group, count: int, rng: Random, *, kinds: Sequence[str] | None = None) -> Group:
    """Append ``count`` constraints, each of another kind and all compatible, to the prompt's last turn.

    They are put into words after an empty line, as a paragraph or a list, and stand in ``meta["constraints"]`` as
    ``{"kind": ..., options}``. Answers and verdicts are left out: they answered another prompt. The same Group, count,
    kinds and state of ``rng`` give the same result.

    ``kinds``: draw from these only; without it from all that suit any prompt (all but ``one_of``).

    Raises DataError for a Group whose last turn is not the user's or that has constraints already, and when so many
    cannot be found; ConfigError for an unknown kind or a count below 1.

    Source: He et al. 2024, "From Complex to Simple" (arXiv:2404.15846): 3 to 5 constraints a prompt
    """
    names = [name for name, kind in CONSTRAINTS.items() if kind.anywhere] if kinds is None else list(kinds)
    for name in names:
        if name not in CONSTRAINTS:
            raise ConfigError(f"no constraint of the kind {name!r}{did_you_mean(name, CONSTRAINTS)}")
    if count < 1:
        raise ConfigError(f"{count} constraints a prompt: there must be at least 1")
    if not group.prompt or group.prompt[-1].role != "user":
        raise DataError(f"group {group.id!r}: constraints are added to a prompt that ends with the user's turn")
    if "constraints" in group.meta:
        raise DataError(f"group {group.id!r}: its meta has 'constraints' already")
    prompt = group.prompt[-1].content
    chosen = _compatible(names, count, prompt, rng)
    if chosen is None:
        raise DataError(
            f"group {group.id!r}: no {count} constraints that go together could be drawn from {len(set(names))} kinds"
        )
    asked = [ask(constraint, rng.randrange(2**16)) for constraint in chosen]
    said = " ".join(asked) if rng.random() < 0.5 else "\n".join(f"- {sentence}" for sentence in asked)
    last = Message(role="user", content=f"{prompt.rstrip()}\n\n{said}")
    meta = {**group.meta, "constraints": chosen}
    return replace(group, prompt=(*group.prompt[:-1], last), answers=(), verdicts=(), meta=meta)


def constrained(
    groups: Iterable[Group], per_prompt: int | tuple[int, int], seed: int, *, kinds: Sequence[str] | None = None
) -> list[Group]:
    """Draw constraints for every Group: so many each, or a number between two (both included).

    What a Group gets depends on the seed, its id and its prompt, not on the Groups beside it. Errors as in ``draw``.
    """
    fewest, most = (per_prompt, per_prompt) if isinstance(per_prompt, int) else per_prompt
    if fewest > most:
        raise ConfigError(f"{fewest} to {most} constraints a prompt: the first number must not be the greater one")
    found: list[Group] = []
    for group in groups:
        rng = Random(derive(seed, "constraints", group.id))
        found.append(draw(group, rng.randint(fewest, most), rng, kinds=kinds))
    return found


def _compatible(names: Sequence[str], count: int, prompt: str, rng: Random) -> list[dict[str, Any]] | None:
    """Draw constraints of different kinds, in random order, each compatible with those before; None if it fails."""
    for _ in range(ROUNDS):
        chosen: list[dict[str, Any]] = []
        for name in rng.sample(names, len(names)):
            for _ in range(TRIES):
                options = CONSTRAINTS[name].draw(rng, prompt)
                if options is None:
                    break
                constraint = {"kind": name, **options}
                if conflict([*chosen, constraint]) is None:
                    chosen.append(constraint)
                    break
            if len(chosen) == count:
                return chosen
    return None
