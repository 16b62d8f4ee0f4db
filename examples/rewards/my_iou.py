"""A custom reward: the IoU of the first box in the completion with the true box."""

import json
import re


def my_iou(completions, solution, **kwargs):
    scores = []
    for text, truth in zip(completions, solution):
        a = re.search(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]", text)
        a = [int(number) for number in a.groups()] if a else [0, 0, 0, 0]
        b = json.loads(re.sub(r"</?answer>", "", truth))
        width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        scores.append(width * height / union if union > 0 else 0.0)
    return scores
