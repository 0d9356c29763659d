"""Losses of reward models, one file a method; the folder is the registry.

A loss is a pure function. Its positional parameters are columns, given by name, and which of them it asks for decides
what an item is; it returns one number an item.

    a pair of answers to one prompt (P,), when it asks for ``better``
        better, worse         the model's scores
        margin, probability   keywords, numbers or (P,): by how much to win, and a soft label

    answers to one prompt in an order (R, K), when it asks for ``ranks``; K is the longest list
        scores                the model's
        ranks                 lower is better, equal is tied; only their order counts
        mask                  1 where there is an answer; elsewhere the rest may hold anything

    an answer with its labels (N, K), when it asks for ``labels``; K attributes
        scores                the model's, one head an attribute
        labels                what raters gave
        mask                  1 where a label is known; elsewhere it may hold anything
"""
