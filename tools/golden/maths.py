"""Golden verdicts of math-verify: whether two answers mean the same.

Writes golden/rewards/maths.jsonl and maths_manifest.json. Needs math-verify 0.9:
python3 tools/golden/maths.py
"""

import json
import platform
import random
from importlib.metadata import version
from pathlib import Path

from math_verify import parse, verify

SEED = 20250415
OUT = Path(__file__).resolve().parents[2] / "golden" / "rewards"


def agrees(gold, answer):
    return bool(verify(parse(gold), parse(answer)))


# --- the cases ---------------------------------------------------------------------------------

# Each line: ways to write one answer. Neighbours within a line are paired, and each with the next line.
SAME = [
    ["$5$", "5", r"\boxed{5}", "The answer is 5.", "$x=5$", "5.0", r"$\frac{10}{2}$", r"\(5\)", "10/2"],
    ["$-5$", "-5", r"$x = -5$", r"\boxed{-5}", "Answer: -5"],
    [r"$\frac{1}{2}$", "0.5", "1/2", r"$\dfrac12$", r"\boxed{\frac{1}{2}}", r"$\frac{2}{4}$", r"50\%", "50%"],
    [r"$\frac{1}{3}$", "1/3", "0.333333", "$0.3333333$", r"$\frac{3}{9}$", "0.3333"],
    ["1,234", "1234", "$1{,}234$", "$1,234$", "1 234", "1234.0"],
    ["1,234,567.5", "1234567.5", "$1{,}234{,}567.5$"],
    [r"$\sqrt{8}$", r"$2\sqrt{2}$", r"\boxed{2\sqrt2}", r"$\sqrt 8$", r"$8^{1/2}$", r"$2^{3/2}$", "2.828427"],
    [r"$\frac{\sqrt{2}}{2}$", r"$\frac{1}{\sqrt{2}}$", r"$\sin(\frac{\pi}{4})$", r"$\cos \frac{\pi}{4}$"],
    [r"$2\pi$", r"\boxed{2 \pi}", r"$\pi + \pi$", "6.283185", r"$\frac{4\pi}{2}$", "2π"],
    [r"$90^\circ$", "90", r"$90$ degrees", r"\boxed{90^{\circ}}", r"$90\text{ degrees}$"],
    ["$28\\%$", "28%", "28 percent", "28", "0.28", r"\boxed{28\%}", "28 pct"],
    [r"$12\text{ cm}^2$", "12", r"$12$ cm", r"\boxed{12\ \mathrm{cm}}", "12 cm^2", r"$12 \mbox{ m}$"],
    [r"$1.5 \times 10^3$", "1500", r"$1500$", r"$15 \cdot 10^2$", r"$1.5E3$"],
    [r"$2.5 \times 10^{-3}$", "0.0025", r"$\frac{1}{400}$", r"$2.5E-3$"],
    [r"$\{1,2,3\}$", "$1,2,3$", r"$\{3,2,1\}$", r"$1, 2, 3$", r"$\boxed{1,2,3}$", "$1$, $2$ and $3$"],
    ["$(1,2)$", r"\boxed{(1, 2)}", r"$\left(1,2\right)$", r"$(1.0, 2.0)$", r"$(x,y)=(1,2)$"],
    ["$(1,2,3)$", r"$\left( 1, 2, 3 \right)$", r"$(1, \frac{4}{2}, 3)$"],
    ["$[0,1)$", r"$\left[0, 1\right)$", r"$x \in [0,1)$", r"$0 \le x < 1$"],
    [r"$(-\infty, 3]$", r"$x \in (-\infty, 3]$", r"$x \le 3$", r"$x \leq 3$", r"$3 \geq x$"],
    [r"$(-\infty,-1) \cup (1,\infty)$", r"$(1, \infty) \cup (-\infty, -1)$", r"$x \in (-\infty,-1)\cup(1,\infty)$"],
    ["$x > 2$", r"$2 < x$", r"$x \gt 2$", "$-x < -2$", "$2x > 4$", r"$(2, \infty)$"],
    ["$x+1$", "$1+x$", r"$\frac{2x+2}{2}$", r"\boxed{x + 1}", "$(x+1)$"],
    ["$(x+1)^2$", "$x^2+2x+1$", r"$(x+1)(x+1)$", r"$x(x+2)+1$"],
    [r"$\frac{x^2-1}{x-1}$", "$x+1$", r"$\frac{(x-1)(x+1)}{x-1}$"],
    ["$y = 2x + 3$", "$2x+3$", "$y=3+2x$", "$2x - y + 3 = 0$", "$y - 2x = 3$"],
    ["$x^2+y^2=4$", "$4=x^2+y^2$", "$2x^2+2y^2=8$", "$x^2 + y^2 - 4 = 0$"],
    [r"$\sin^2 x + \cos^2 x$", "$1$", "1"],
    [r"$\tan x$", r"$\frac{\sin x}{\cos x}$", r"$\frac{\sin(x)}{\cos(x)}$"],
    [r"$\log_2 8$", "3", r"$\frac{\ln 8}{\ln 2}$", r"$\log_{2}{8}$"],
    [r"$e^{2}$", r"$\exp(2)$", r"$e^2$", r"$e \cdot e$"],
    [r"$\binom{5}{2}$", "10", r"$\frac{5!}{2!3!}$", "$5!/12$"],
    [r"$2\frac{1}{2}$", r"$\frac{5}{2}$", "2.5", r"$2.5$"],
    [r"$\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$", r"$\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}$",
     r"$\begin{pmatrix} 1 & \frac{4}{2} \\ 3 & 4.0 \end{pmatrix}$"],
    [r"$\begin{pmatrix} 1 \\ 2 \end{pmatrix}$", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}"],
    [r"$\text{Evelyn}$", r"\boxed{\text{Evelyn}}", r"$\textbf{Evelyn}$", "$Evelyn$"],
    [r"$\text{(C)}$", "$C$", r"\boxed{C}", r"$\boxed{\text{C}}$"],
    [r"$1 \pm \sqrt{2}$", r"$1+\sqrt{2}, 1-\sqrt{2}$", r"$\{1-\sqrt2, 1+\sqrt2\}$", r"$x = 1 \pm \sqrt{2}$"],
    ["$x=1, y=2$", "$y=2, x=1$", r"\boxed{x=1, y=2}"],
    [r"$|x|$", r"$\sqrt{x^2}$", r"$\lvert x \rvert$"],
    [r"$\frac{a}{b}$", "$a/b$", r"$a b^{-1}$", r"\boxed{\frac ab}"],
    [r"$\sqrt[3]{27}$", "3", r"$27^{1/3}$", "$3$"],
    [r"$3+4i$", r"$4i+3$", r"\boxed{3 + 4i}"],
    [r"$\lfloor 3.7 \rfloor$", "3", r"$\lceil 2.2 \rceil$"],
    [r"$\sum_{k=1}^{4} k$", "10", r"$1+2+3+4$"],
    [r"$f(2) < f(1)$", r"$f(1) > f(2)$"],
    [r"$\emptyset$", r"$\{\}$", r"$\varnothing$"],
    [r"$\infty$", r"\boxed{\infty}", r"$+\infty$"], [r"$-\infty$", r"\boxed{-\infty}"],
    [r"$\mathbb{R}$", r"$(-\infty, \infty)$", r"$x \in \mathbb{R}$"],
    ["$2^{10}$", "1024", r"$4^5$", "$1024$"],
    ["$0.1 + 0.2$", "0.3", "$0.3$", r"$\frac{3}{10}$"],
    ["The final answer is $42$. I hope it is correct.", "42", r"So \boxed{42}", "Answer: $42$ or so"],
    ["It costs \\$5.50", "$5.50", "5.5", "€5.50"],
    ["12:30", "12:30 pm", "12"], ["3/4 of it", "0.75", "75%"],
    ["no number here", "no number here", "none"], ["", "", "0"], ["007", "7", "7.0"],
    [r"$\frac{3}{4}$ hours", "3/4", "45"], ["$k = 7$", "7", "$7$"], ["$\\alpha + \\beta$", "$\\beta+\\alpha$"],
    ["$3x^2 - 2x + 1$", "$1 - 2x + 3x^2$", "$x(3x-2)+1$"], ["$-\\frac{1}{2}$", "$\\frac{-1}{2}$", "-0.5", "$-.5$"],
    ["$\\frac{1}{1+\\sqrt{2}}$", "$\\sqrt{2}-1$", "0.414214"], ["$\\ln 2$", "$\\log 2$", "0.693147"],
]


def wrap(rng, tex):
    return rng.choice([
        f"${tex}$", f"\\boxed{{{tex}}}", f"$\\boxed{{{tex}}}$", f"\\({tex}\\)", f"\\[ {tex} \\]", f"$${tex}$$",
        f"The answer is ${tex}$.", f"Thus $x = 1$ and so the final answer is ${tex}$. I hope it is correct.",
        f"Answer: ${tex}$", f"First $1+1=2$. Then \\boxed{{{tex}}} follows.", f"$k = {tex}$",
    ])


def number(rng):
    a, b = rng.randint(-40, 40), rng.randint(1, 12)
    forms = [f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"\\dfrac{{{2 * a}}}{{{2 * b}}}", f"{a / b:.7f}", f"{a} \\cdot \\frac{{1}}{{{b}}}"]
    if a % b == 0:
        forms += [str(a // b), f"{a // b}.0"]
    return rng.choice(forms), rng.choice(forms)


def polynomial(rng):
    a, b, c = (rng.randint(-4, 4) for _ in range(3))
    x = rng.choice("xyt")
    forms = [
        f"({x} + {a})({x} + {b}) + {c}".replace("+ -", "- "),
        f"{x}^2 + {a + b}{x} + {a * b + c}".replace("+ -", "- "),
        f"{a * b + c} + {a + b}{x} + {x}^{{2}}".replace("+ -", "- "),
        f"{x}({x} + {a + b}) + {a * b + c}".replace("+ -", "- "),
    ]
    return rng.choice(forms), rng.choice(forms)


def surd(rng):
    a, b = rng.randint(1, 6), rng.choice([2, 3, 5, 7])
    forms = [f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}", f"\\frac{{{a * b}}}{{\\sqrt{{{b}}}}}", f"{a} \\cdot {b}^{{1/2}}"]
    return rng.choice(forms), rng.choice(forms)


def listing(rng):
    items = [str(rng.randint(-9, 9)) for _ in range(rng.randint(2, 4))]
    other = rng.sample(items, len(items))
    shape = rng.choice(["%s", "\\{%s\\}", "(%s)", "[%s]", "\\left(%s\\right)"])
    twin = rng.choice([shape, shape, "%s", "(%s)", "\\{%s\\}"])
    return shape % ", ".join(items), twin % ", ".join(rng.choice([items, other]))


def interval(rng):
    low, high = sorted([rng.randint(-9, 9), rng.randint(-9, 9)])
    ends = lambda: rng.choice("([") + f"{low}, {high + 1}" + rng.choice(")]")
    sign = lambda: rng.choice(["<", "\\le", "\\leq"])
    forms = [ends(), ends(), f"x \\in {ends()}", f"{low} {sign()} x {sign()} {high + 1}"]
    return rng.choice(forms), rng.choice(forms)


def equation(rng):
    a, b, k = rng.randint(1, 5), rng.randint(-5, 5), rng.choice([1, 2, 3, -1])
    sign = rng.choice(["=", "=", "<", "\\ge"])
    forms = [f"{a}x + y {sign} {b}", f"y + {a}x {sign} {b}", f"{k * a}x + {k}y {sign} {k * b}", f"{b} {sign} {a}x + y"]
    return rng.choice(forms), rng.choice(forms)


MAKERS = [number, number, polynomial, surd, listing, interval, equation]


def maths_pairs(rng):
    for index, line in enumerate(SAME):
        following = SAME[(index + 1) % len(SAME)]
        for i, form in enumerate(line):
            yield form, line[0]
            yield line[0], form
            yield form, line[(i + 1) % len(line)]
            yield form, rng.choice(following)
    for _ in range(700):
        left, right = rng.choice(MAKERS)(rng)
        if rng.random() < 0.1:
            right = right.replace("1", "3", 1)
        yield wrap(rng, left), wrap(rng, right)


def maths_cases(rng):
    seen = set()
    for gold, answer in maths_pairs(rng):
        if (gold, answer) not in seen:
            seen.add((gold, answer))
            yield {"gold": gold, "answer": answer, "verdict": agrees(gold, answer)}


def main():
    cases = [json.dumps(case) for case in maths_cases(random.Random(SEED))]
    (OUT / "maths.jsonl").write_text("\n".join(cases) + "\n")
    packages = ["math-verify", "latex2sympy2_extended", "sympy"]
    manifest = {
        "made_by": "tools/golden/maths.py", "python": platform.python_version(), "seed": SEED,
        "cases": {"maths.jsonl": len(cases)}, **{name: version(name) for name in packages},
    }
    (OUT / "maths_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
