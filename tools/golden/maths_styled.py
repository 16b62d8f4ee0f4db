"""Golden verdicts of math-verify for numbers inside text and font commands: `\\text{13}`, `\\boxed{\\mathbf{-5}}`.

Writes golden/rewards/maths_styled.jsonl and maths_styled_manifest.json. Needs math-verify 0.9:
python3 tools/golden/maths_styled.py
"""

import json
import platform
from importlib.metadata import version

from maths import OUT, agrees

COMMANDS = [
    "text", "textbf", "textit", "textrm", "textnormal", "mbox", "mathrm", "mathbf", "mathit", "mathsf", "mathtt", "mathcal",
    "bm", "boldsymbol", "operatorname", "underline", "emph", "overline", "hat", "textsf", "texttt", "textup", "textsc", "hbox",
]
# Ways to style that are no single command with one pair of braces.
FORMS = [
    r"\rm %s", r"{\rm %s}", r"\bf %s", r"{\bf %s}", r"\bf{%s}", r"\displaystyle %s", r"\displaystyle{%s}", r"\textstyle %s",
    r"\textcolor{red}{%s}", r"\color{red}%s", r"\color{red}{%s}", r"{\color{red} %s}", r"\large %s", r"\mathbf %s",
    r"\text{\textbf{%s}}", r"\mathbf{\text{%s}}", r"\mathbf{\mathrm{%s}}", r"\boxed{\text{%s}}", r"\text{\boxed{%s}}",
    r"\text {%s}", r"\text{ %s}", r"\text{%s }", r"\text{ %s }", r"\mathrm{ %s }", r"{\text{%s}}", r"(\text{%s})",
    r"\left(\mathbf{%s}\right)", r"\text{(%s)}", r"\text{[%s]}", r"\textbf{%s}.", r"\text{%s}^\circ", r"\text{%s}\%%", r"\text{%s\%%}",
    r"\text{%s cm}", r"\text{%s} cm", r"\text{%s}\text{ cm}", r"\text{%s}\ \mathrm{cm}", r"\mathbf{%s}\,\text{cm}^2", r"-\text{%s}",
    r"x = \text{%s}", r"x=\mathbf{%s}", r"\text{x = %s}", r"\text{Answer: %s}", r"\text{%s apples}", r"\frac{\text{%s}}{\text{2}}",
    r"\frac{\mathbf{%s}}{2}", r"\text{%s}x", r"\mathbf{%s} + x", r"\mathbf{%s}\sqrt{2}", r"\mathbf{%s}\pi", r"\text{%s}+1", r"2\text{%s}",
    r"\text{%s}, \text{7}", r"\{\text{%s}, \text{7}\}", r"(\mathbf{%s}, \mathbf{7})", r"\text{%s and 7}", r"\text{%s}\text{ and }\text{7}",
    r"\text{%s, 7}", r"\mathbf{%s}, 7", r"[\mathbf{%s}, 70)", r"\sqrt{\mathbf{%s}}", r"2^{\mathbf{%s}}", r"x^{\text{%s}}", r"a_{\text{%s}}",
    r"x < \mathbf{%s}", r"\mathbf{%s} < x", r"\text{%s}!", r"|\mathbf{%s}|", r"\mathrm{th}\text{%s}", r"\text{%s}\text{th}",
]
# What is styled, with plain answers to compare it with.
INSIDE = {
    "13": ["13", "$13$", r"\boxed{13}", "13.0", "14", r"$\frac{26}{2}$", "-13", "13%", "$13x$", "$13\\pi$", r"$13\sqrt{2}$"],
    "-5": ["-5", "$-5$", "5", "-5.0", "$x=-5$"],
    "0": ["0", "$0$", "$-0$"],
    "3.5": ["3.5", "$3.5$", "3", r"$\frac{7}{2}$"],
    "1/2": ["1/2", "$1/2$", r"$\frac{1}{2}$", "0.5", "2/4"],
    r"\frac{1}{2}": ["1/2", r"$\frac{1}{2}$", "0.5"],
    "-3/4": ["-3/4", r"$-\frac{3}{4}$", r"$\frac{-3}{4}$", "-0.75"],
    "1,234": ["1234", "1,234", "$1,234$", "$1,234$"],
    "007": ["7", "007"],
    "1 3": ["13", "1"],
    "+13": ["13"],
    "50%": ["50", "50%", "0.5"],
    "1e5": ["100000", "1e5"],
    "13x": ["$13x$", "13"],
    "x": ["$x$", "x"],
    "2^5": ["32", "$2^5$"],
    "123456789012345678901234567890": ["123456789012345678901234567890"],
}
# Answers that the forms of the first number fit.
PARTNERS = [
    "$13x$", "$13+x$", r"$13\sqrt{2}$", r"$13\pi$", "$14$", "$13+1$", "$26$", "$2 \\cdot 13$", "$13, 7$", r"$\{7, 13\}$", "$(13, 7)$", "$[13, 70)$",
    r"$\frac{13}{2}$", r"$\sqrt{13}$", "$2^{13}$", "$x^{13}$", "$a_{13}$", "$x < 13$", "$x > 13$", "$x = 13$", "$13!$", "$|13|$", "$-13$", "13 and 7",
]


def pairs():
    forms = [f"\\{command}{{%s}}" for command in COMMANDS] + FORMS
    for inside, plain in INSIDE.items():
        for form in forms:
            if inside not in ("13", "-5") and form in FORMS[13:]:
                continue
            styled = form % inside
            yield f"${styled}$", plain[0]
            yield plain[-1], f"\\boxed{{{styled}}}"
        for form in [r"$\text{%s}$", r"\boxed{\mathbf{%s}}", r"$\mbox{%s}$"]:
            for answer in plain:
                yield form % inside, answer
                yield answer, form % inside
    for form in FORMS:
        styled = form % "13"
        for partner in PARTNERS:
            yield f"${styled}$", partner
    for form in forms:
        styled = form % "13"
        yield f"${styled}$", styled
        yield f"The answer is ${styled}$.", "13"
        yield f"\\({styled}\\)", r"$\text{13}$"
        yield r"$\mathbf{13}$", f"\\[{styled}\\]"


def main():
    seen = dict.fromkeys(pairs())
    verdicts = [{"gold": gold, "answer": answer, "verdict": agrees(gold, answer)} for gold, answer in seen]
    # Most are false and of few kinds.
    cases = [json.dumps(case) for index, case in enumerate(verdicts) if case["verdict"] or index % 5 == 0]
    (OUT / "maths_styled.jsonl").write_text("\n".join(cases) + "\n")
    packages = ["math-verify", "latex2sympy2_extended", "sympy"]
    manifest = {
        "made_by": "tools/golden/maths_styled.py", "python": platform.python_version(),
        "cases": {"maths_styled.jsonl": len(cases)}, **{name: version(name) for name in packages},
    }
    (OUT / "maths_styled_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
