"""Keeps one reward function loaded and answers batches: a JSON object a line in, one out.

Arguments: the file, the function, the form of completions (`auto`, `text` or `chat`).
"""

import asyncio
import decimal
import importlib.util
import inspect
import itertools
import json
import math
import numbers
import os
import signal
import sys
import traceback
from collections import abc


def own_streams():
    """Takes stdin and stdout for the protocol; what the function prints goes to stderr."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")
    return requests, answers


def leave_signals_to_the_trainer():
    """A scheduler sends its signals to every process of a job. The trainer finishes its step, which this has to score.

    A function that does nothing, as what is ignored would be ignored by the programs that a reward starts too.
    """
    trainer = os.getppid()

    def on_signal(number, _frame):
        # The trainer is gone, or this is a copy that the reward made of this process.
        if os.getppid() != trainer:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)


class NoFunction(Exception):
    """The file can be run, and does not hold what was asked for."""


def utf8(text):
    """The text with surrogates that stand alone written out: no JSON can hold them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def load(path, name):
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location("user_reward", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_reward"] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise NoFunction(f"no function `{name}`; defined: {', '.join(known) or 'none'}")
    return function


def wants_chat(function):
    parameter = inspect.signature(function).parameters.get("completions")
    return parameter is not None and "dict" in str(parameter.annotation).lower()


def arguments(request, chat):
    """Rows to columns, as trainers in Python pass them."""
    rows = request["rows"]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: [row.get(key) for row in rows] for key in keys}
    completions = columns.pop("completion")
    prompts = columns.get("problem", [None] * len(rows))
    if chat:
        completions = [[{"role": "assistant", "content": text}] for text in completions]
        prompts = [[{"role": "user", "content": text}] for text in prompts]
        grids = columns["image_grid_thw"]
        columns["image_grid_thw"] = [grid[0] if grid else None for grid in grids]
    columns.update(prompts=prompts, completions=completions, step=request["step"])
    return columns


def accepted(function, columns):
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return columns
    return {key: value for key, value in columns.items() if key in parameters}


def shown(value):
    """What a value is and how it reads, for a message."""
    try:
        text = repr(value)
    except Exception:
        text = "it has no text"
    text = text if len(text) <= 200 else text[:200] + "..."
    return f"{text} ({type(value).__name__})"


def counted(number, thing):
    """`1 score`, `2 scores`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def listed(scores, expected):
    """The scores in order, one more than expected at most; none where that is not what was returned."""
    if hasattr(scores, "tolist"):
        scores = scores.tolist()  # numpy, torch, pandas
        return scores if isinstance(scores, list) else None
    # Keys are no scores, a set has no order, and the letters of a text are neither.
    if isinstance(scores, (str, bytes, bytearray, abc.Mapping, abc.Set)) or hasattr(scores, "keys"):
        return None
    if not isinstance(scores, abc.Iterable):
        return None
    return scores if isinstance(scores, list) else list(itertools.islice(scores, expected + 1))


def number_of(score):
    """The score as a float, None where it is no number: the text of one is none."""
    if hasattr(score, "item") and getattr(score, "ndim", 0) == 0:
        score = score.item()  # a scalar of numpy or torch
    if isinstance(score, (numbers.Real, decimal.Decimal)):
        try:
            return float(score)
        except OverflowError:
            return math.inf
    return None


def checked(returned, expected):
    """The scores as JSON can hold them, or the index at fault and why."""
    scores = listed(returned, expected)
    if scores is None:
        want = f"expected a list of {counted(expected, 'number')}, one for each completion, or None where it does not apply"
        return None, None, f"returned {shown(returned)}, {want}"
    if len(scores) != expected:
        count = f"over {expected}" if len(scores) > expected and scores is not returned else len(scores)
        return None, None, f"returned {counted(count, 'score')} for {counted(expected, 'completion')}"
    checked_scores = []
    for row, score in enumerate(scores):
        number = None if score is None else number_of(score)
        if score is not None and number is None:
            return None, row, f"returned {shown(score)} as a score, expected a number or None"
        if number is not None and not math.isfinite(number):
            return None, row, f"returned {number}, expected a finite number"
        checked_scores.append(number)
    return checked_scores, None, None


async def awaited(scores):
    return await scores


def shortened(text, most=8000):
    """Begin and end of a long message: the cause stands at the end, where it is not the message that is long."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n... {len(text) - most} characters left out ...\n{text[-most // 2 :]}"


def answer(function, request, chat):
    try:
        columns = arguments(request, chat)
        scores = function(**accepted(function, columns))
        if inspect.isawaitable(scores):
            scores = asyncio.run(awaited(scores))
        scores, row, error = checked(scores, len(request["rows"]))
    except Exception as cause:
        scores, row, error = None, None, shortened(traceback.format_exc().strip())
        if not chat and isinstance(cause, TypeError) and "string ind" in str(cause):
            error += "\nhint: for completions as chat messages name it `FILE.py:FUNCTION:chat`"
    if error is None:
        return {"id": request["id"], "scores": scores}
    return {"id": request["id"], "error": utf8(error), "row": row}


def main():
    path, name, form = sys.argv[1:4]
    requests, answers = own_streams()
    leave_signals_to_the_trainer()

    def say(value):
        sys.stdout.flush()
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        function = load(path, name)
        chat = form == "chat" or (form == "auto" and wants_chat(function))
    except NoFunction as cause:
        say({"error": utf8(str(cause))})
        return
    except Exception:
        say({"error": utf8(traceback.format_exc().strip())})
        return
    say({"ready": True})
    for line in requests:
        say(answer(function, json.loads(line), chat))


main()
