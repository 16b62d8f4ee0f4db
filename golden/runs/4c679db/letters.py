"""A reward for tests: the share of letters from a to m, so that completions differ."""


def early(completions, **_):
    return [sum("a" <= c.lower() <= "m" for c in text) / max(len(text), 1) for text in completions]
