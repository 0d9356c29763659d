"""Rules that give an answer a number, one file a rule; the folder is the registry.

A rule is a pure function of an answer, ``rule(text, ...) -> float``, higher is better. It asks by name for what it
reads, and what stands after ``*`` are its options:

    text     str                     what was answered
    prompt   tuple[Message, ...]     the conversation that it answers
    truth    str                     the right answer, as the data give it; of several, each in turn (``RuleScorer``)
    meta     Mapping[str, Any]       what else the data say of the prompt
    ended    bool                    the writer ended the answer; no cap cut it

A rule that cannot judge raises ``RewardError``; it never answers 0 instead.
"""
