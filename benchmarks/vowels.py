"""The benchmark's reward, the same file for both programs: the share of vowels in an answer.

Answers of a random model are all different, so it varies within every group; it takes microseconds.
"""


def vowel_share(completions, **kwargs):
    """Takes plain texts or chat messages."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(text.lower().count(vowel) for vowel in "aeiou") / max(1, len(text)) for text in texts]
