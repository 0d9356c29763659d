"""Preference losses, one file a method; the folder is the registry.

A loss is a pure function. Its positional parameters are columns, given by name; its keyword-only parameters are the
method's options. It returns one number an item, and which columns it asks for decides what an item is:

    a pair of answers to one prompt (P,), when it asks for ``chosen``
        chosen, rejected                  sum of the policy's log-probabilities over the answer's tokens, nats
        ref_chosen, ref_rejected          the same under the frozen reference
        chosen_tokens, rejected_tokens    tokens of the answer, its end counted (at least 1)
        chosen_kl, rejected_kl            sum over the answer's places of KL(reference || policy), whole vocabulary

    one answer (A,), when it asks for ``desirable``
        logps, ref_logps                  as above
        desirable                         1 for an answer that was liked, 0 for one that was not
        baseline                          (), KL of the policy from the reference, never negative, without gradient

    a prompt with all its answers (G,), when it asks for ``scores``; K is the longest list
        logps, tokens                     (G, K) as above
        scores                            (G, K) higher is better; only their order counts
        mask                              (G, K) 1 where there is an answer; elsewhere the rest may hold anything finite

A method that asks for no column of the reference needs no reference. A soft label P makes the loss of a pair
``P l(chosen, rejected) + (1 - P) l(rejected, chosen)``, for every method alike, so no method has to know of it.
"""
