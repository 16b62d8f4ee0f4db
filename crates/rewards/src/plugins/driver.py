"""Keeps one reward function loaded and answers batches: a JSON object a line in, one out.

Arguments: the file, the function, the form of completions (`auto`, `text` or `chat`).
"""

import importlib.util
import inspect
import json
import math
import os
import signal
import sys
import traceback


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

    def heed(number, _frame):
        # The trainer is gone, or this is a copy that the reward made of this process.
        if os.getppid() != trainer:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, heed)


def load(path, name):
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location("user_reward", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_reward"] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise AttributeError(f"no function `{name}`; defined: {', '.join(known) or 'none'}")
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


def checked(scores, expected):
    """The scores as JSON can hold them, or the index at fault and why."""
    scores = scores.tolist() if hasattr(scores, "tolist") else list(scores)
    if len(scores) != expected:
        return None, None, f"returned {len(scores)} scores for {expected} completions"
    numbers = []
    for row, score in enumerate(scores):
        try:
            number = None if score is None else float(score)
        except (TypeError, ValueError):
            return None, row, f"returned {score!r}, expected a number or None"
        if number is not None and not math.isfinite(number):
            return None, row, f"returned {number}, expected a finite number"
        numbers.append(number)
    return numbers, None, None


def answer(function, request, chat):
    try:
        columns = arguments(request, chat)
        scores = function(**accepted(function, columns))
        scores, row, error = checked(scores, len(request["rows"]))
    except Exception as cause:
        scores, row, error = None, None, traceback.format_exc().strip()
        if not chat and isinstance(cause, TypeError) and "string ind" in str(cause):
            error += "\nhint: for completions as chat messages name it `FILE.py:FUNCTION:chat`"
    if error is None:
        return {"id": request["id"], "scores": scores}
    return {"id": request["id"], "error": error, "row": row}


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
    except Exception:
        say({"error": traceback.format_exc().strip()})
        return
    say({"ready": True})
    for line in requests:
        say(answer(function, json.loads(line), chat))


main()
