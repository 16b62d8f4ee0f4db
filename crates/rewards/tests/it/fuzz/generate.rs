//! Texts that a broken or hostile model might write: pieces of all that the rules look for, nested,
//! repeated, cut, spliced and damaged. Each is a function of seed and index.

/// Splitmix64.
pub struct Draws(u64);

impl Draws {
    pub fn new(seed: u64, index: u64) -> Self {
        let mut draws = Self(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        draws.next();
        draws
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `end`, which is left out.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const WORDS: &[&str] = &[
    "the",
    "cat",
    "answer",
    "final answer is ",
    "Answer:",
    "click",
    "yes",
    "No",
    "B.",
    "(C)",
    "None",
    "none",
    ". I hope",
    "因此",
    "答案",
    "is",
    "and",
    "or",
    "percent",
    "cm",
    "I think",
    "A",
    "red",
    "正确",
];

const TAGS: &[&str] = &[
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    "<ANSWER>",
    "<answer",
    "answer>",
    "</answer",
    "<|im_end|>",
    "<answer><answer>",
    "</think><answer>",
    "<think></think>",
];

const LATEX: &[&str] = &[
    "$",
    "$$",
    r"\(",
    r"\)",
    r"\[",
    r"\]",
    r"\boxed{",
    r"\boxed ",
    r"\fbox{",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "^",
    "_",
    "=",
    "<",
    ">",
    r"\le ",
    r"\ge ",
    r"\ne ",
    r"\in ",
    r"\cup ",
    r"\cap ",
    r"\setminus ",
    r"\frac",
    r"\dfrac12",
    r"\frac{1}{2}",
    r"\sqrt",
    r"\sqrt[3]",
    r"\sqrt{2}",
    r"\sin ",
    r"\cos x",
    r"\arcsin ",
    r"\tan^{-1} ",
    r"\log_2 ",
    r"\ln ",
    r"\exp(",
    r"\pi ",
    r"\infty ",
    r"\pm ",
    r"\times 10^",
    r"\cdot ",
    r"\div ",
    r"\text{ cm}",
    r"\text{",
    r"\mathrm{d}",
    r"\mathbb{R}",
    r"\{",
    r"\}",
    r"\emptyset ",
    r"\%",
    "%",
    r"\$",
    "!",
    "|",
    r"\lvert ",
    r"\rvert ",
    r"\lfloor ",
    r"\rfloor ",
    r"\binom{5}{2}",
    r"\sum_{k=1}^{9} k",
    r"\prod_{i=1}^{n}",
    r"\int_0^1 x dx",
    r"\lim_{x \to 0} ",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\begin{vmatrix}1&2\\3&4\end{vmatrix}",
    "&",
    r"\\",
    r"\operatorname{gcd}(",
    r"\left(",
    r"\right)",
    r"\circ",
    "^\\circ",
    r"\alpha",
    "x",
    "y",
    "e",
    "i",
    "f(x)",
    "dx",
    "2x",
    "x^2",
    r"\displaystyle",
    r"\ ",
    r"\!",
    "\\",
    ",",
    ";",
    " and ",
    r"\zzz",
    "√",
    "×",
    "π",
    "≤",
    "∞",
    "°",
];

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "007",
    "1.5",
    ".5",
    "5.",
    "1e400",
    "1E-3",
    "1e-400",
    "-0",
    "NaN",
    "nan",
    "Infinity",
    "-inf",
    "1_000",
    "1,234",
    "1 234",
    "1,2,3",
    "٣",
    "３",
    "१२",
    "1/0",
    "0/0",
    "3/4",
    "50%",
    "9999999999999999999999",
    "1e308",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775809",
    "1.7976931348623157e308",
    "0x10",
    "12:30",
    "€5.50",
    "$5.50",
    "½",
    "²",
    "1/3",
    "0.333333",
    "2^10",
    "10^{100}",
    "9^{9^9}",
    "--1",
    "+1",
    "1.2.3",
];

const JSON: &[&str] = &[
    "```json",
    "```",
    "\n",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    ":",
    ",",
    "\"bbox_2d\"",
    "\"label\"",
    "\"cat\"",
    "null",
    "true",
    "[1, 2, 30, 40]",
    "[1, 2, 3]",
    "{\"bbox_2d\": [1, 2, 30, 40], \"label\": \"cat\"}",
    "\\u00e9",
    "\\ud800",
    "\\",
    "{\"bbox_2d\": [5, 5, 1, 1], \"label\": \"cat\"},",
    "[[1,2,30,40]]",
    "{'bbox_2d': (1, 2), }",
    "\"label\": 3",
    "[1e999, NaN, -Infinity, 0]",
    "{\"a\": {\"a\": {\"a\": ",
    "// comment",
    "None",
    "```JSON",
    "````",
];

const UNICODE: &[&str] = &[
    "é",
    "e\u{301}",
    "İ",
    "ß",
    "ΟΔΟΣ",
    "\u{feff}",
    "\u{200d}",
    "👩‍👩‍👧",
    "\u{2028}",
    "\u{1d}",
    "\u{85}",
    "\u{a0}",
    "\0",
    "\u{10ffff}",
    "ǅ",
    "ﬁ",
    "\u{202e}",
    "\r\n",
    "\t",
    "\u{3000}",
    "𝟙",
    "ا",
];

/// A text of mostly a few hundred characters, seldom of up to 20,000.
pub fn text(draws: &mut Draws) -> String {
    let mut text = String::new();
    let most = if draws.one_in(20) { 60 } else { 14 };
    let pieces = 1 + draws.below(most);
    let subject = draws.below(7);
    for _ in 0..pieces {
        // Most of a text is about one thing.
        let kind = if draws.one_in(3) { draws.below(7) } else { subject };
        text += &piece(draws, kind, 0);
        if draws.one_in(4) {
            text.push(' ');
        }
    }
    if draws.one_in(2) {
        text = wrapped(draws, &text);
    }
    for _ in 0..draws.below(4) {
        text = damaged(draws, text);
    }
    if draws.one_in(400) {
        let times = draws.below(20_000) / text.len().max(1) + 1;
        text = text.repeat(times);
    }
    let end = text.char_indices().nth(20_000).map_or(text.len(), |(at, _)| at);
    text.truncate(end);
    text
}

fn piece(draws: &mut Draws, kind: usize, depth: usize) -> String {
    if depth < 4 && draws.one_in(6) {
        let (open, close) = [
            ("(", ")"),
            ("{", "}"),
            ("[", "]"),
            ("$", "$"),
            (r"\boxed{", "}"),
            (r"\{", r"\}"),
            ("\"", "\""),
        ][draws.below(7)];
        let levels = if draws.one_in(12) { draws.below(300) } else { 1 + draws.below(3) };
        let inside: String = (0..draws.below(4)).map(|_| piece(draws, kind, depth + 1)).collect();
        return format!("{}{inside}{}", open.repeat(levels), close.repeat(levels));
    }
    let piece = match kind {
        0 => draws.pick(WORDS).to_owned(),
        1 => draws.pick(LATEX).to_owned(),
        2 => draws.pick(JSON).to_owned(),
        3 => number(draws),
        4 => whole(draws),
        5 => draws.pick(TAGS).to_owned(),
        _ => draws.pick(UNICODE).to_owned(),
    };
    if draws.one_in(60) {
        return piece.repeat(draws.below(400));
    }
    piece
}

fn number(draws: &mut Draws) -> String {
    match draws.below(6) {
        0 => draws.below(1000).to_string(),
        1 => format!("-{}.{}", draws.below(100), draws.below(10_000)),
        2 => format!("{:?}", f64::from_bits(draws.next())),
        3 => format!("{}e{}", draws.below(100), draws.below(800) as i64 - 400),
        4 => format!("\\frac{{{}}}{{{}}}", draws.below(20), draws.below(20)),
        _ => draws.pick(NUMBERS).to_owned(),
    }
}

/// A piece as a well-behaved model would write it.
fn whole(draws: &mut Draws) -> String {
    let mut corner = || draws.below(120);
    let [a, b, c, d] = [corner(), corner(), corner(), corner()];
    match draws.below(8) {
        0 => format!(
            "{{\"bbox_2d\": [{a}, {b}, {}, {}], \"label\": \"{}\"}}",
            a + c,
            b + d,
            draws.pick(&["cat", "dog", ""])
        ),
        1 => {
            let boxes: Vec<String> = (0..draws.below(5))
                .map(|_| {
                    format!(
                        "{{\"bbox_2d\": [{}, {}, {}, {}], \"label\": \"cat\"}}",
                        draws.below(50),
                        draws.below(50),
                        50 + draws.below(50),
                        50 + draws.below(50)
                    )
                })
                .collect();
            format!("```json\n[{}]\n```", boxes.join(", "))
        }
        2 => format!("[{a}, {b}, {c}, {d}]"),
        3 => format!("click({a}, {b})"),
        4 => format!("$\\frac{{{a}}}{{{b}}} + \\sqrt{{{c}}}$"),
        5 => format!("${a}x^{} + {b}x < {c}$", draws.below(9)),
        6 => format!("\\boxed{{({a}, {b}] \\cup [{c}, \\infty)}}"),
        _ => format!("$\\sin({a}\\pi/{b}) \\cdot e^{{{c}}} - \\ln({d})^{{{a}/{b}}}$"),
    }
}

fn wrapped(draws: &mut Draws, text: &str) -> String {
    match draws.below(6) {
        0 => format!("<answer>{text}</answer>"),
        1 => format!("<think>{}</think><answer>{text}</answer>", draws.pick(WORDS)),
        2 => format!("<think>{text}</think>\n<answer> {} </answer>", whole(draws)),
        3 => format!("<answer>```json\n[{text}]\n```</answer>"),
        4 => format!("${text}$"),
        _ => format!("\\boxed{{{text}}}"),
    }
}

/// A stretch deleted, doubled, moved or replaced.
fn damaged(draws: &mut Draws, text: String) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (a, b) = (draws.below(chars.len() + 1), draws.below(chars.len() + 1));
    let (from, to) = (a.min(b), a.max(b).min(a.min(b) + 40));
    let string = |part: &[char]| part.iter().collect::<String>();
    let (head, middle, tail) =
        (string(&chars[..from]), string(&chars[from..to]), string(&chars[to..]));
    match draws.below(6) {
        0 => head + &tail,
        1 => format!("{head}{middle}{middle}{tail}"),
        2 => format!("{tail}{middle}{head}"),
        3 => {
            let kind = draws.below(7);
            format!("{head}{}{tail}", piece(draws, kind, 3))
        }
        4 => head,
        _ => {
            let stray = char::from_u32(draws.below(0x11_0000) as u32).unwrap_or('\u{fffd}');
            format!("{head}{stray}{tail}")
        }
    }
}

/// A completion and a true answer: unrelated, the same, or one made of the other.
pub fn pair(draws: &mut Draws) -> (String, String) {
    let completion = text(draws);
    let mut truth = match draws.below(5) {
        0 => completion.clone(),
        1 => damaged(draws, completion.clone()),
        2 => {
            let inside = whole(draws);
            format!("<answer> {inside} </answer>")
        }
        _ => text(draws),
    };
    let end = truth.char_indices().nth(1_000).map_or(truth.len(), |(at, _)| at);
    truth.truncate(end);
    (completion, truth)
}
