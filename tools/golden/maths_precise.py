"""Pairs of expressions that doubles cannot tell apart, or take for different, with what is true.

Writes golden/rewards/maths_precise.jsonl and maths_precise_manifest.json. `equal` is what mpmath finds with 400
digits (at three points where there is a variable), `verdict` what math-verify says. Needs math-verify 0.9 and
mpmath: python3 tools/golden/maths_precise.py
"""

import json
import platform
import random
from importlib.metadata import version
from pathlib import Path

from math_verify import parse, verify
from mpmath import acos, asin, atan, cbrt, cos, cosh, e, exp, log, mp, mpc, mpf, pi, sin, sinh, sqrt, tan

SEED = 20250416
OUT = Path(__file__).resolve().parents[2] / "golden" / "rewards"
mp.dps = 400

# Each maker gives LaTeX and a function of x of the same value, twice; the values are equal or not, as it comes.


def tiny(rng):
    """A root and the same root with a little more."""
    n, k = rng.choice([2, 3, 5, 7, 11]), rng.randint(10, 60)
    twin = rng.choice([f"\\sqrt{{{n}}}", f"\\frac{{{n}}}{{\\sqrt{{{n}}}}}"])
    if rng.random() < 0.3:
        return f"\\sqrt{{{n}}}", lambda x: sqrt(n), twin, lambda x: sqrt(n)
    return (f"\\sqrt{{{n}}} + 10^{{-{k}}}", lambda x: sqrt(n) + mpf(10) ** -k, twin, lambda x: sqrt(n))


def cancelling(rng):
    """sqrt(N + 1) - sqrt(N) and its inverse form."""
    k = rng.randint(10, 90)
    n = mpf(10) ** k
    more = rng.choice([1, 1, 2])
    return (f"\\sqrt{{10^{{{k}}}+1}} - \\sqrt{{10^{{{k}}}}}", lambda x: sqrt(n + 1) - sqrt(n),
            f"\\frac{{1}}{{\\sqrt{{10^{{{k}}}+{more}}} + \\sqrt{{10^{{{k}}}}}}}", lambda x: 1 / (sqrt(n + more) + sqrt(n)))


def large_minus_large(rng):
    k, a, b = rng.randint(18, 80), rng.randint(1, 9), rng.choice([2, 3, 5])
    c = rng.choice([a, a, a + 1])
    n = mpf(10) ** k
    return (f"(10^{{{k}}} + {a}\\sqrt{{{b}}}) - 10^{{{k}}}", lambda x: (n + a * sqrt(b)) - n,
            f"{c}\\sqrt{{{b}}}", lambda x: c * sqrt(b))


def high_power(rng):
    b, n, d = rng.choice([2, 3, 7]), rng.randint(800, 6000), rng.choice([0, 0, 1])
    return (f"\\sqrt{{{b}}}^{{{2 * n}}} \\cdot \\pi", lambda x: mpf(b) ** n * pi,
            f"{b}^{{{n + d}}} \\pi", lambda x: mpf(b) ** (n + d) * pi)


def ratio_of_powers(rng):
    n, d = rng.randint(400, 3000), rng.choice([0, 0, 1])
    return (f"\\frac{{\\pi^{{{n + 1}}}}}{{\\pi^{{{n}}}}}", lambda x: pi, f"\\pi + {d} \\cdot 10^{{-20}}", lambda x: pi + d * mpf(10) ** -20)


def nested(rng):
    """sqrt(a + b + 2 sqrt(ab)) = sqrt(a) + sqrt(b)"""
    a, b = rng.sample([2, 3, 5, 7, 11, 13], 2)
    sign, off = rng.choice([1, -1]), rng.choice([0, 0, 0, 1])
    a, b = max(a, b), min(a, b)
    mark = "+" if sign > 0 else "-"
    return (f"\\sqrt{{{a + b} {mark} 2\\sqrt{{{a * b + off}}}}}", lambda x: sqrt(mpc(a + b + sign * 2 * sqrt(a * b + off))),
            f"\\sqrt{{{a}}} {mark} \\sqrt{{{b}}}", lambda x: sqrt(a) + sign * sqrt(b))


def ramanujan(rng):
    """Sums of roots that agree to 10 digits and more without being equal."""
    pairs = [
        ("\\sqrt{2} + \\sqrt{3}", sqrt(2) + sqrt(3), "\\pi + \\frac{4671}{1000000}", pi + mpf(4671) / 10 ** 6),
        ("e^{\\pi \\sqrt{163}}", exp(pi * sqrt(163)), "262537412640768744", mpf(262537412640768744)),
        ("\\sqrt{10} + \\sqrt{11} + \\sqrt{5}", sqrt(10) + sqrt(11) + sqrt(5), "\\sqrt{18} + \\sqrt{20}", sqrt(18) + sqrt(20)),
        ("\\frac{\\ln(640320^3 + 744)}{\\sqrt{163}}", log(mpf(640320) ** 3 + 744) / sqrt(163), "\\pi", pi),
        ("\\sqrt[4]{\\frac{2143}{22}}", (mpf(2143) / 22) ** mpf(0.25), "\\pi", pi),
        ("\\sqrt[3]{2 + \\sqrt{5}} + \\sqrt[3]{9 - 4\\sqrt{5}}", cbrt(2 + sqrt(5)) + cbrt(9 - 4 * sqrt(5)), "2", mpf(2)),
        ("\\sqrt[3]{2 + \\sqrt{5}}", cbrt(2 + sqrt(5)), "\\frac{1 + \\sqrt{5}}{2}", (1 + sqrt(5)) / 2),
        ("16\\arctan\\frac{1}{5} - 4\\arctan\\frac{1}{239}", 16 * atan(mpf(1) / 5) - 4 * atan(mpf(1) / 239), "\\pi", pi),
        ("\\cos\\frac{\\pi}{5}", cos(pi / 5), "\\frac{1+\\sqrt{5}}{4}", (1 + sqrt(5)) / 4),
        ("\\sin(10^{15} \\pi + 1)", sin(mpf(10) ** 15 * pi + 1), "\\sin(1)", sin(1)),
        ("\\cos(10^{12})", cos(mpf(10) ** 12), "\\cos(10^{12} + 10^{-9})", cos(mpf(10) ** 12 + mpf(10) ** -9)),
        ("\\ln(10^{400})", 400 * log(10), "400 \\ln(10)", 400 * log(10)),
        ("\\arcsin(\\frac{3}{5}) + \\arccos(\\frac{3}{5})", asin(mpf(3) / 5) + acos(mpf(3) / 5), "\\frac{\\pi}{2}", pi / 2),
        ("\\tan(\\frac{\\pi}{8})", tan(pi / 8), "\\sqrt{2} - 1", sqrt(2) - 1),
    ]
    a, x, b, y = rng.choice(pairs)
    return a, lambda _: x, b, lambda _: y


def identity(rng):
    """Of a variable, with or without a little more."""
    k, d = rng.randint(9, 40), rng.choice([0, 0, 1])
    little = f" + 10^{{-{k}}}" if d else ""
    more = d * mpf(10) ** -k
    a, b, f = rng.choice([
        ("\\sin(2x)", "2\\sin(x)\\cos(x)", lambda x: sin(2 * x)),
        ("\\sqrt{x^2 + 2x + 1}", "|x + 1|", lambda x: abs(x + 1)),
        ("e^{2x}", "(e^x)^2", lambda x: exp(2 * x)),
        ("\\cos^2(x) - \\sin^2(x)", "1 - 2\\sin^2(x)", lambda x: cos(2 * x)),
        ("\\ln(x^2 + 1)", "2\\ln\\sqrt{x^2+1}", lambda x: log(x * x + 1)),
        ("(x + \\sqrt{2})(x - \\sqrt{2})", "x^2 - 2", lambda x: x * x - 2),
        ("(x+1)^{40}", "((x+1)^{20})^2", lambda x: (x + 1) ** 40),
        ("\\frac{e^x - e^{-x}}{2}", "\\sinh(x)", lambda x: sinh(x)),
        ("\\sqrt{1 + \\sinh^2(x)}", "\\cosh(x)", lambda x: cosh(x)),
        ("(10^{20} + \\sqrt{x}) - 10^{20}", "\\sqrt{x}", lambda x: sqrt(x)),
    ])
    return a + little, lambda x: f(x) + more, b, f


MAKERS = [tiny, tiny, cancelling, large_minus_large, high_power, ratio_of_powers, nested, nested, ramanujan, identity, identity]
POINTS = [mpf(7) / 5, mpf(3) / 11, mpf(9) / 4]


def same(f, g):
    return all(abs(f(x) - g(x)) <= mpf(10) ** -200 * max(1, abs(f(x))) for x in POINTS)


def main():
    rng = random.Random(SEED)
    cases = {}
    while len(cases) < 400:
        a, f, b, g = rng.choice(MAKERS)(rng)
        equal = same(f, g)
        if rng.random() < 0.5:
            a, b = b, a
        gold, answer = f"${a}$", f"${b}$"
        if (gold, answer) not in cases:
            verdict = bool(verify(parse(gold), parse(answer)))
            cases[gold, answer] = {"gold": gold, "answer": answer, "equal": equal, "verdict": verdict}
    lines = [json.dumps(case, ensure_ascii=True) for case in cases.values()]
    (OUT / "maths_precise.jsonl").write_text("\n".join(lines) + "\n")
    manifest = {
        "made_by": "tools/golden/maths_precise.py", "python": platform.python_version(), "seed": SEED, "cases": len(lines),
        "digits": mp.dps, **{name: version(name) for name in ["math-verify", "latex2sympy2_extended", "sympy", "mpmath"]},
    }
    (OUT / "maths_precise_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
