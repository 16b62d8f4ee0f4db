"""What the corpus of `vlm_r1.py` is made of: completions and solutions, realistic and hostile.

Each maker takes a random generator and returns `completion`, `solution` and what else its rules look at.
"""

import json

from detection import near_box, odd_box, some_box
from find_boxes import answer_body
from maths import MAKERS, SAME, wrap

THOUGHTS = [
    "why", "", "The picture shows a street.\nI count them one by one.", "Let me look: B is wrong, so no.", "1 + 1 = 2 < 3",
    "<b>hm</b>", "[1, 2, 3, 4]", "答案是", "```json\n[]\n```", "x" * 40,
]


def completion_of(rng, body):
    """`body` as the answer, in the form that is asked for in two of three cases."""
    thought = rng.choice(THOUGHTS)
    space = rng.choice(["", "", "\n", " ", "\n\n", "\x1c", "\u2003", "\u00a0"])
    if rng.random() < 0.65:
        return f"<think>{thought}</think>{space}<answer>{rng.choice([body, f' {body} ', f'{chr(10)}{body}{chr(10)}'])}</answer>"
    return rng.choice([
        body, "", f"<answer>{body}</answer>", f"<think>{thought}</think>{body}", f"<answer>{body}", f"{body}</answer>",
        f"<ANSWER>{body}</ANSWER>", f"<answer>None</answer> or <answer>{body}</answer>", f"<answer>{body}</answer>.",
        f"<answer>{body}</answer><answer>x</answer>", f"<think>{body}</think><answer>None</answer>",
        f"<think>{thought}</think>x<answer>{body}</answer>", f"<think>{thought}</think>{space}<answer>{body}</answer>\n",
        f" <think>{thought}</think>{space}<answer>{body}</answer>", f"<think>a</think> b <think>c</think><answer>{body}</answer>",
        f"<think>a<answer>{body}</answer></think><answer>[1, 1, 2, 2]</answer>", f"<think>a<answer>{body}</answer>",
        f"<answer>none</answer><think>a</think>{space}<answer>{body}</answer>", f"<think>{body}</think><answer></answer>",
        f"<answer>a<answer>{body}</answer></answer>", "<answer> None </answer>", "<answer>None.</answer>", "None",
        f"</answer>{body}<answer>", f"<answer >{body}</answer>", f"\ufeff<think></think><answer>{body}</answer>",
    ])


def solution_of(rng, body):
    """As VLM-R1 makes it of a row, `<answer> ... </answer>`; one in ten otherwise."""
    if rng.random() < 0.9:
        return f"<answer> {body} </answer>"
    return rng.choice([body, f"<answer>\n{body}\n</answer>", f"<answer>x</answer><answer>{body}</answer>", f"<answer>{body}"])


# --- texts: choices, yes or no, words, maths ---------------------------------------------------

CHOICE_WORDS = [
    "A", "B.", "C,", "d", "(E)", "the answer is", "correct:", "答案是", "I think", "yes", "No,", "not", "A:", "maybe", "\n",
    "\x1d", "ß", "right", "B", "!", "A.", "X;", "C. a dog", "none of them", "应该选择 D。", "Ｂ", "D?", "I believe", "é", "B！",
]
WORDS = [
    "red", "cat", "Dog", "ΟΔΟΣ", "İ", "3", "4.5", "B", "x1", "\n", "-", "1_000", "٣", "nan", ".", "a b", "\r\n", "ﬁ", "STOP",
    "1e400", "½", "²", "３", "-0", "0x1F", "infinity", "inf", "None", "null", "\u200b", "😀", "\x00", "1,234", "…", "#", "%", "7.",
]
SENTENCES = [
    "The car is red.", "There are 3 dogs in the picture.", "It says \"EXIT 12B\".", "A man riding a horse on the beach",
    "two cats and a dog", "12:30 pm", "$4.99", "The bus's number is 42.", "北京市朝阳区", "No, the light is green.",
    "Yes, both of them are open.", "left", "Left of the table.", "45 degrees", "3/4 cup", "+1 (555) 010-9999", "O'Brien's",
]


def said(rng, words, most):
    return " ".join(rng.choice(words) for _ in range(rng.randint(0, most)))


def altered(rng, text):
    """The same answer, or nearly."""
    at = rng.randint(0, len(text))
    return rng.choice([
        text, text, text, text.upper(), text.lower(), text + ".", f"The answer is {text}", text + "s", text[1:], text[:-1],
        text[:at] + rng.choice("xyz 1,") + text[at:], text.replace(" ", "  "), text.replace("e", "é"), f"**{text}**", f'"{text}"',
    ])


def choice_case(rng):
    truth = rng.choice([said(rng, CHOICE_WORDS, 6), rng.choice("ABCD"), rng.choice("ABCD"), "yes", "No", "yes"])
    other = rng.choice([said(rng, CHOICE_WORDS, 8), altered(rng, truth), altered(rng, rng.choice(["A", "B", "yes", "no"]))])
    return other, truth


def word_case(rng):
    truth = rng.choice([said(rng, WORDS, 4), rng.choice(SENTENCES), rng.choice(SENTENCES)])
    other = rng.choice([said(rng, WORDS, 4), altered(rng, truth), altered(rng, truth), rng.choice(SENTENCES)])
    return other, truth


def number_case(rng):
    number = rng.choice([rng.randint(-20, 2000), round(rng.uniform(-9, 99), 2), rng.randint(0, 12) / 4])
    forms = [
        str(number), str(number), f"{number}", f"{float(number)}", f"{number:,}", f"{number:e}", f"0{number}", f"{number}.",
        f"${number}$", f"\\boxed{{{number}}}", f"{number} cm", f"€{number}", f"{number}%", f"= {number}", f"about {number}", f"x = {number}",
        "".join(chr(0x0660 + int(c)) if c.isdigit() else c for c in str(number)), str(number + 1), str(-number),
    ]
    return rng.choice(forms), rng.choice([str(number), rng.choice(forms)])


def maths_case(rng):
    if rng.random() < 0.5:
        line = rng.choice(SAME)
        other = rng.choice(line if rng.random() < 0.8 else rng.choice(SAME))
        return other, rng.choice(line)
    left, right = rng.choice(MAKERS)(rng)
    if rng.random() < 0.2:
        right = right.replace("1", "3", 1)
    return wrap(rng, left), rng.choice([f"${right}$", f"${right}$", right, wrap(rng, right)])


def text_case(rng):
    maker = rng.choices([choice_case, word_case, number_case, maths_case], [5, 5, 3, 4])[0]
    other, truth = maker(rng)
    return {"completion": completion_of(rng, other), "solution": solution_of(rng, truth)}


# --- labelled boxes ----------------------------------------------------------------------------

TEXT_LABELS = ["cat", "dog", "Cat", "red car", "", "été", "ΟΔΟΣ"]
LABELS = ["cat", "1", 1, 1.0, True, 0, False, None]
LONG = "LONG"  # An integer that Python neither writes nor reads.


def not_a_box(rng, box):
    return rng.choice([
        [str(n) for n in box], box[:3], box + [5], [*box[:3], None], {"x": 1}, "box", None, 7, [box], [],
        [*box[:2], "9", box[3]], [True, False, *box[2:]], [*box[:3], float("nan")], [float("-inf"), *box[1:]],
        [*box[:3], 10 ** 400], [*box[:2], 1e308, 1e308], [-1e308, -1e308, 1e308, 1e308], [*box[:3], LONG], [*box, float("nan")],
    ])


def some_item(rng, truths, labels):
    kind = rng.random()
    near = rng.choice(truths)["bbox_2d"] if truths and kind < 0.8 else some_box(rng)
    box = near_box(rng, near)
    if rng.random() < 0.06:
        box = odd_box(rng, box)
    if rng.random() < 0.06:
        box = not_a_box(rng, box)
    label = rng.choice(labels)
    if rng.random() < 0.05:
        label = rng.choice(["absent", "absent", "other", [label], {"a": 1}, 2, None])
    item = {"bbox_2d": box, "label": label}
    if rng.random() < 0.05:
        item.pop(rng.choice(["bbox_2d", "label"]))
    if rng.random() < 0.03:
        item = rng.choice(["text", 5, None, [item], {}])
    return item


def truth_list(rng, labels):
    truths = []
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 9])):
        box = some_box(rng)
        if truths and rng.random() < 0.15:
            box = truths[-1]["bbox_2d"]
        if rng.random() < 0.05:
            box = odd_box(rng, box)
        truths.append({"bbox_2d": box, "label": rng.choice(labels)})
    return truths


def written(rng, value):
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))
    text = text.replace(f'"{LONG}"', "7" * 4400)
    if rng.random() < 0.08:
        text = rng.choice([
            text[:-1], text + "]", text.replace('"', "'"), text.replace("]", ",]", 1), "", " ",
            '{"a": 1, "a": 2}', '"text"', "7", "null", "[]", "{}", text.replace("{", '{"label": "x", ', 1),
            "\u00a0" + text + "\x1c", text + "\x00", "\ufeff" + text, "[" * 2000,
        ])
    return text


def block(rng, text):
    space = rng.choice(["\n", "\n", "", " ", "\r\n", "\u2003"])
    if rng.random() < 0.7:
        return f"```json{space}{text}{space}```"
    return rng.choice([
        f"```json{space}{text}", f"``` {text}```", text,
        f"```json []``` then ```json{space}{text}```", f"```json{space}{text}``` then ```json []```",
        f"```JSON{space}{text}{space}```",
    ])


def bad_truth(rng, truths):
    """One that no data should hold; VLM-R1 fails on most."""
    items = [dict(item) for item in truths] or [{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]
    item = items[-1]
    item.update(rng.choice([
        {"bbox_2d": item["bbox_2d"][:3]}, {"bbox_2d": "all"}, {"bbox_2d": [1, 2, 3, None]}, {"bbox_2d": [0, 0, float("nan"), 1]},
        {"label": ["cat"]}, {"label": {}}, {"bbox_2d": [0, 0, 10 ** 400, 1]}, {"bbox_2d": ["1", "2", "3", "4"]},
    ]))
    if rng.random() < 0.3:
        del item[rng.choice(["bbox_2d", "label"])]
    text = json.dumps(items)
    return rng.choice([text, text, text, text[:-1], "7", '{"a": 1}', '"ab"', "null"])


def boxes_case(rng):
    labels = rng.sample(TEXT_LABELS if rng.random() < 0.8 else LABELS, rng.randint(1, 3))
    truths = truth_list(rng, labels)
    count = rng.choice([0, 1, 2, 3, 4, 6, 9]) if rng.random() < 0.995 else rng.randint(101, 130)
    items = [some_item(rng, truths, labels) for _ in range(count)]
    if items and rng.random() < 0.2:
        items += [rng.choice(items) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.04:
        value = f"```json\n{bad_truth(rng, truths)}\n```"
    elif not truths:
        value = rng.choice(["None", "None", "```json\n[]\n```", "nothing", "```json```", " None ", ""])
    else:
        value = f"```json\n{json.dumps(truths, ensure_ascii=False)}\n```"
    completion = completion_of(rng, block(rng, written(rng, items)))
    return {"completion": completion, "solution": solution_of(rng, value), "tokens": rng.choice([0, 1, 1024, rng.randint(2, 3000)])}


# --- repetition --------------------------------------------------------------------------------

PROSE = ["the", "cat", "The", "sat", "on", "a", "mat,", "and", "ΟΔΟΣ", "then", "İ", "\u2003", "so\x1cso", "一", "ß"]


def broken(rng, text):
    """JSON with what models get wrong in it, and json_repair mends or does not."""
    at = rng.randint(0, len(text))
    return rng.choice([
        text[:at], text[:-1], text[:-2], text.replace('"', "'"), text.replace("]", ",]"), text.replace(",", "", 1), text + "}",
        text.replace("}, {", "} {"), text.replace('"bbox_2d"', "bbox_2d"), text.replace('"label": ', '"label" '), f"Here: {text}",
        text + " // done", text.replace("}", "", 1), text.replace("[", "[,", 1), text.replace('"label": "', '"label": '), f"{text}{text}",
        text[:at] + rng.choice('"\\,:[]{}x1\n') + text[at:], text.replace(", ", ",\n ... "),
    ])


def repeats_case(rng):
    if rng.random() < 0.4:
        words = [rng.choice(PROSE) for _ in range(rng.choice([0, 3, 5, 6, 7, 12, 40]))]
        words *= rng.choice([1, 1, 2, 5])
        text = rng.choice([" ", " ", "\n", "  ", " \t"]).join(words)
        return {"completion": rng.choice([text, text, completion_of(rng, text)]), "solution": "<answer> None </answer>", "tokens": len(words)}
    labels = rng.sample(TEXT_LABELS if rng.random() < 0.8 else LABELS, rng.randint(1, 3))
    truths = truth_list(rng, labels)
    items = [some_item(rng, truths, labels) for _ in range(rng.choice([0, 1, 2, 3, 5]))]
    items += [rng.choice(items) for _ in range(rng.randint(0, 4)) if items]
    text = json.dumps(items, ensure_ascii=rng.random() < 0.5).replace(f'"{LONG}"', "7" * 4400)
    if rng.random() < 0.35:
        text = broken(rng, text)
    text = rng.choice([f"```json\n{text}\n```", f"```json\n{text}\n```", f"```\n{text}\n```", text, f"boxes: {text}", f"```json\n{text}"])
    return {"completion": rng.choice([text, completion_of(rng, text)]), "solution": "<answer> None </answer>", "tokens": len(text) // 3}


# --- referring expressions ---------------------------------------------------------------------

def rec_case(rng):
    original = [rng.randint(20, 900), rng.randint(20, 900)]
    grid = [1, 2 * rng.randint(1, 32), 2 * rng.randint(1, 32)]
    seen = [grid[2] * 14, grid[1] * 14]
    xs, ys = (sorted(rng.randint(0, side) for _ in range(2)) for side in original)
    truth = [xs[0], ys[0], xs[1] + 1, ys[1] + 1]
    if rng.random() < 0.2:
        truth = [n + rng.choice([0.25, 0.5, 0.1]) for n in truth]
    near = rng.choice([truth, [n * s / o for n, s, o in zip(truth, seen * 2, original * 2)]])
    shake = rng.choice([0, 1, 4, 20])
    box = [max(0, round(n) + rng.randint(-shake, shake)) for n in near]
    if rng.random() < 0.1:
        box = [box[2], box[1], box[0], box[3]]
    if rng.random() < 0.03:
        box[2] = int("9" * rng.choice([18, 25, 200, 400]))
    solution = f"<answer> {json.dumps(truth)} </answer>"
    if rng.random() < 0.05:
        solution = rng.choice([
            json.dumps(truth), "<answer> [1, 2, 3] </answer>", "<answer> a box </answer>", '<answer> {"bbox": [1, 2, 3, 4]} </answer>',
            "<answer> [1, 2, 3, 4, 5] </answer>", "<answer> [1, 2, 3, NaN] </answer>", f"<answer> x </answer> {solution}",
            f"{solution} <answer>", "<answer></answer>", '<answer> [1, 2, 3, "4"] </answer>', "<answer> [true, 2, 3, 4] </answer>",
        ])
    completion = completion_of(rng, answer_body(rng, box))
    return {"completion": completion, "solution": solution, "image_size": original, "image_grid_thw": grid}
