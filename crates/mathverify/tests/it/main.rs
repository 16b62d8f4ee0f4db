//! `verify` against math-verify, by hand, and on hostile text.

use std::time::{Duration, Instant};

use mathverify::verify;
use proptest::prelude::*;
use serde::Deserialize;
use testing::golden_cases;

#[derive(Debug, Deserialize)]
struct Case {
    gold: String,
    answer: String,
    verdict: bool,
}

/// Where the two part is listed and judged in `docs/maths.md`.
#[test]
fn verdicts_agree_with_math_verify() {
    let cases = golden_cases::<Case>("rewards/maths.jsonl", 1_500);
    let parted: Vec<&Case> =
        cases.iter().filter(|case| verify(&case.gold, &case.answer) != case.verdict).collect();
    let share = 1.0 - parted.len() as f64 / cases.len() as f64;
    assert!(share >= 0.985, "{share}: {parted:#?}");
}

/// `\text{13}`, `\boxed{\mathbf{-5}}` and their like: numbers inside text and font commands.
#[test]
fn styled_numbers_agree_with_math_verify() {
    let cases = golden_cases::<Case>("rewards/maths_styled.jsonl", 1_000);
    let parted: Vec<&Case> = cases
        .iter()
        .filter(|case| verify(&case.gold, &case.answer) != case.verdict)
        // A fraction is reduced here on both sides; there, on neither.
        .filter(|case| case.gold != "2/4")
        .collect();
    assert!(parted.is_empty(), "{} parted: {parted:#?}", parted.len());
    assert!(verify(r"$\mathbf{7}, 13$", r"$\{7, 13\}$"));
}

#[derive(Debug, Deserialize)]
struct PreciseCase {
    gold: String,
    answer: String,
    equal: bool,
}

/// Near-equal constants, cancellations, high powers and nested roots, by mpmath with 400 digits.
#[test]
fn close_numbers_are_told_apart() {
    let cases = golden_cases::<PreciseCase>("rewards/maths_precise.jsonl", 400);
    let wrong: Vec<&PreciseCase> =
        cases.iter().filter(|case| verify(&case.gold, &case.answer) != case.equal).collect();
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
}

#[test]
fn equal_by_hand() {
    for (gold, answer) in [
        (r"\boxed{\frac{3}{4}}", "0.75"),
        ("1,000", "$10^3$"),
        (r"$\frac{1}{3}$", "0.333333"),
        (r"$x^2 - 1$", "$(x-1)(x+1)$"),
        (r"$\frac{\tan y}{\sin y}$", r"$\sec y$"),
        (r"$\sqrt{50}$", r"$5\sqrt2$"),
        (r"$\{1, 2\}$", "$2, 1$"),
        ("$(1, 2)$", r"$\left(\frac{2}{2}, 2.0\right)$"),
        ("$x = 1 = 1$", "1"),
        ("$2x + 4y = 3$", r"$y = \frac{3}{4} - \frac{x}{2}$"),
        (r"$2x > 4$", r"$(2, \infty)$"),
        ("$|x - 1| < 2$", "$(-1, 3)$"),
        (r"$|x| > 2$", r"$(-\infty, -2) \cup (2, \infty)$"),
        (r"$1 \le |z| \le 3/2$", r"$z \in [-3/2, -1] \cup [1, 3/2]$"),
        (r"$\sqrt{2} x > 2$", r"$(\sqrt{2}, \infty)$"),
        ("$x^2 = 4$", r"$\{-2, 2\}$"),
        (r"$|x| < -1$", r"$\emptyset$"),
        // Neither can be read; the candidates' texts are equal.
        (r"$\zzz 1$", r"so $\zzz 1$"),
    ] {
        assert!(verify(gold, answer), "{gold} {answer}");
    }
}

#[test]
fn unequal_by_hand() {
    for (gold, answer) in [
        ("1", "2"),
        ("$[0, 1)$", "$[0, 1]$"),
        ("$x > 1$", "$x < 1$"),
        ("$x = 1$", "$y = 1$"),
        (r"$\sqrt{2}$", "1.4142"),
        ("$(1, 2)$", "$(2, 1)$"),
        ("$x + 1$", "$x + 2$"),
        (r"$\begin{pmatrix} 1 & 2 \end{pmatrix}$", r"$\begin{pmatrix} 1 \\ 2 \end{pmatrix}$"),
        ("$2^{100000}$", "$2^{100001}$"),
        (r"$2x > 4$", r"$[2, \infty)$"),
        ("$|x - 1| < 2$", "$(-1, 4)$"),
        ("$|x - 1| < 2$", "$(-1, 2.999)$"),
        (r"$x^2 < 4$", r"$(-\infty, 2)$"),
        ("$x^2 = 4$", r"$\{2\}$"),
        (r"$x \ne 2$", r"$(-\infty, \infty)$"),
        (r"$2y + x < 3$", "$(1, 2)$"),
        (r"$(2, \infty)$", "$2x > 4$"),
        ("", ""),
        ("words", "words"),
    ] {
        assert!(!verify(gold, answer), "{gold} {answer}");
    }
}

/// Unoptimised tests run a few times slower than the 10 ms that the optimised build keeps to; a
/// quadratic search takes seconds.
#[test]
fn a_hundred_thousand_characters_are_fast() {
    let pieces = [
        "$",
        "$$",
        r"\(",
        r"\[",
        r"\boxed{",
        "{",
        "}",
        "(",
        "[",
        "1",
        "1 ",
        "1+",
        "1,",
        "9",
        "-",
        r"\frac",
        r"\frac{1}{2}",
        r"$\frac{1}{2}$",
        "$x$ ",
        "answer",
        "answer: ",
        "answer is 5 ",
        "final answer is ",
        "final answer is $1$ ",
        r"\sqrt",
        "^",
        "$2^{9^9}$ ",
        "5! ",
        r"$\zzz$ ",
        " [1] ",
        "=",
        "and ",
        "\\",
        " ",
        "\n",
        "%",
        "é",
        "answer = = ",
        "$ and ",
        r"\text{",
        "1.",
    ];
    for piece in pieces {
        for (head, tail) in [("", ""), ("$", "$"), (r"\boxed{", "}"), ("answer: $1", "")] {
            let body = piece.repeat(100_000 / piece.chars().count());
            let text = format!("{head}{body}{tail}");
            let start = Instant::now();
            verify(&text, r"$\frac{1}{2}$");
            let took = start.elapsed();
            assert!(took < Duration::from_millis(500), "{head}{piece}*{tail}: {took:?}");
        }
    }
}

#[test]
fn deep_and_huge_answers_end() {
    for answer in [
        format!("${}1{}$", "(".repeat(1_400), ")".repeat(1_400)),
        format!("${}1{}$", "{".repeat(1_400), "}".repeat(1_400)),
        format!("${}1$", "-".repeat(2_900)),
        format!("$2{}$", "^2".repeat(1_400)),
        format!("$9{}$", "!".repeat(2_900)),
        format!("$x{}$", "^{x".repeat(900) + &"}".repeat(900)),
        r"$9^{9^{9^{9^{9}}}}$".to_owned(),
        r"$\sum_{k=1}^{999999999} \sum_{j=1}^{999999999} k j$".to_owned(),
        r"$\binom{9999}{5000}^{9999}$".to_owned(),
        r"$1E400 \cdot 1E400$".to_owned(),
        format!("${}$", r"\begin{pmatrix}9&9\\9&9\end{pmatrix}".repeat(60)),
        format!("${}$", "f(".repeat(700)),
        format!("${}1$", r"\frac{1}".repeat(300)),
        format!("$[{}]$", "1;2,".repeat(300)),
        format!("${}$", "x<".repeat(600) + "1"),
    ] {
        let start = Instant::now();
        verify(&answer, &answer);
        verify(&answer, "$1$");
        verify("$x+1$", &answer);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}: {answer:.80}");
    }
}

/// Texts made of what the readers look for.
fn near_misses() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "$",
        "$$",
        r"\(",
        r"\)",
        r"\[",
        r"\]",
        r"\boxed{",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "1",
        "23",
        "4.5",
        ",",
        ";",
        "+",
        "-",
        "*",
        "/",
        "^",
        "_",
        "=",
        "<",
        r"\le ",
        r"\in ",
        r"\cup ",
        "x",
        "y",
        "e",
        "i",
        r"\pi ",
        r"\frac",
        r"\sqrt",
        r"\sin ",
        r"\log_",
        r"\text{a}",
        r"\pm ",
        "!",
        "|",
        r"\infty ",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        "&",
        r"\\",
        "%",
        r"\%",
        "answer",
        "final answer is ",
        ". I hope",
        " and ",
        " ",
        "\n",
        r"\sum_{i=1}^{3}",
        r"\circ",
        "é",
        "°",
        r"\binom",
        r"\{",
        r"\}",
        r"\emptyset ",
        r"\mathbb{R}",
        r"\operatorname{gcd}",
        "E3",
        "'",
    ]);
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_text_ends_in_a_verdict(gold in near_misses(), answer in near_misses(), any in any::<String>()) {
        verify(&gold, &answer);
        verify(&format!("${gold}$"), &format!("${answer}$"));
        verify(&any, &gold);
    }

    /// A form of a fraction equals every other, and no other fraction.
    #[test]
    fn fractions_are_exact(above in -999i64..1000, below in 1i64..1000, factor in 1i64..50) {
        let gold = format!(r"$\frac{{{above}}}{{{below}}}$");
        let same = format!("{}/{}", above * factor, below * factor);
        prop_assert!(verify(&gold, &same), "{} {}", gold, same);
        let boxed = format!(r"\boxed{{{above} \div {below}}}");
        prop_assert!(verify(&gold, &boxed), "{} {}", gold, boxed);
        let other = format!(r"$\frac{{{}}}{{{}}}$", above * factor + 1, below * factor);
        prop_assert!(!verify(&gold, &other), "{} {}", gold, other);
    }
}
