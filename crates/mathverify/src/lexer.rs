//! LaTeX to tokens. What no rule knows makes the text unreadable.

/// A piece of LaTeX that means something.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// Digits with at most one `.`, or with an exponent.
    Number(String),
    /// A number followed by a per cent sign.
    Percent(String),
    /// A variable, a Greek letter or a word in `\text{}`.
    Name(String),
    /// `\command`.
    Command(&'static str),
    /// `\begin{...matrix}` or `\end{...matrix}`, arrays included.
    Matrix { begin: bool, determinant: bool },
    /// Degrees: `^\circ`.
    Degree,
    /// One character of punctuation, or a relation in one of the forms `<`, `≤`.
    Char(char),
}

const SPACES: [&str; 14] = [
    "thinspace",
    "medspace",
    "thickspace",
    "quad",
    "qquad",
    "negthinspace",
    "negmedspace",
    "negthickspace",
    "vrule",
    "vcenter",
    "vbox",
    "vskip",
    "vspace",
    "hfil",
];

/// Commands that stand for one character of [`Token::Char`].
const CHARS: &[(&str, char)] = &[
    ("times", '*'),
    ("cdot", '*'),
    ("div", '/'),
    ("over", '/'),
    ("lbrace", '⦃'),
    ("rbrace", '⦄'),
    ("lbrack", '['),
    ("rbrack", ']'),
    ("lgroup", '('),
    ("rgroup", ')'),
    ("in", '∈'),
    ("notin", '∉'),
    ("lt", '<'),
    ("gt", '>'),
    ("le", '≤'),
    ("leq", '≤'),
    ("leqslant", '≤'),
    ("ge", '≥'),
    ("geq", '≥'),
    ("geqslant", '≥'),
    ("ne", '≠'),
    ("neq", '≠'),
    ("approx", '≈'),
    ("equiv", '='),
    ("cup", '∪'),
    ("cap", '∩'),
    ("setminus", '∖'),
    ("pm", '±'),
    ("mp", '±'),
    ("emptyset", '∅'),
    ("infty", '∞'),
    ("lvert", '⟦'),
    ("rvert", '⟧'),
    ("vert", '|'),
    ("mod", '%'),
    ("to", '→'),
    ("rightarrow", '→'),
    ("Rightarrow", '→'),
    ("longrightarrow", '→'),
    ("Longrightarrow", '→'),
];

/// Commands that the parser knows by name.
const COMMANDS: &[&str] = &[
    "frac",
    "dfrac",
    "tfrac",
    "cfrac",
    "sqrt",
    "binom",
    "dbinom",
    "tbinom",
    "choose",
    "log",
    "ln",
    "exp",
    "sin",
    "cos",
    "tan",
    "csc",
    "sec",
    "cot",
    "arcsin",
    "arccos",
    "arctan",
    "arccsc",
    "arcsec",
    "arccot",
    "sinh",
    "cosh",
    "tanh",
    "arsinh",
    "arcosh",
    "artanh",
    "arcsinh",
    "arccosh",
    "arctanh",
    "floor",
    "ceil",
    "gcd",
    "lcm",
    "max",
    "min",
    "det",
    "lim",
    "int",
    "sum",
    "prod",
    "lfloor",
    "rfloor",
    "lceil",
    "rceil",
    "llcorner",
    "lrcorner",
    "ulcorner",
    "urcorner",
    "boxed",
    "phantom",
    "operatorname",
];

const NAMES: &[&str] = &[
    "alpha",
    "beta",
    "gamma",
    "Gamma",
    "delta",
    "Delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "Theta",
    "vartheta",
    "iota",
    "kappa",
    "lambda",
    "Lambda",
    "mu",
    "nu",
    "xi",
    "Xi",
    "omicron",
    "pi",
    "Pi",
    "varpi",
    "rho",
    "varrho",
    "sigma",
    "Sigma",
    "varsigma",
    "tau",
    "upsilon",
    "Upsilon",
    "phi",
    "Phi",
    "varphi",
    "chi",
    "psi",
    "Psi",
    "omega",
    "Omega",
    "wp",
    "nabla",
    "angle",
    "measuredangle",
    "ell",
    "hbar",
    "triangle",
    "square",
    "prime",
    "imath",
    "jmath",
    "Re",
    "Im",
    "clubsuit",
    "heartsuit",
    "spadesuit",
    "diamondsuit",
    "varnothing",
    "complement",
    "partial",
    "bigstar",
    "blacksquare",
    "lozenge",
    "sharp",
    "flat",
    "natural",
];

const GREEK: &[(char, &str)] = &[
    ('α', "alpha"),
    ('β', "beta"),
    ('γ', "gamma"),
    ('Γ', "Gamma"),
    ('δ', "delta"),
    ('Δ', "Delta"),
    ('ε', "epsilon"),
    ('ζ', "zeta"),
    ('η', "eta"),
    ('θ', "theta"),
    ('Θ', "Theta"),
    ('κ', "kappa"),
    ('λ', "lambda"),
    ('Λ', "Lambda"),
    ('μ', "mu"),
    ('ν', "nu"),
    ('ξ', "xi"),
    ('π', "pi"),
    ('Π', "Pi"),
    ('ρ', "rho"),
    ('σ', "sigma"),
    ('Σ', "Sigma"),
    ('τ', "tau"),
    ('φ', "phi"),
    ('Φ', "Phi"),
    ('χ', "chi"),
    ('ψ', "psi"),
    ('Ψ', "Psi"),
    ('ω', "omega"),
    ('Ω', "Omega"),
];

/// Commands whose braces hold a name: of these, `\text` and `\mbox` leave it bare.
const ACCENTS: &[(&str, &str)] = &[
    ("text", ""),
    ("textit", ""),
    ("textbf", ""),
    ("textnormal", ""),
    ("textrm", ""),
    ("mbox", ""),
    ("mathrm", "math"),
    ("mathit", "math"),
    ("mathbf", "math"),
    ("mathcal", "math"),
    ("mathsf", "math"),
    ("mathbb", "math"),
    ("mathfrak", "math"),
    ("mathscr", "math"),
    ("mathtt", "math"),
    ("mathop", "math"),
    ("bar", "bar"),
    ("overline", "bar"),
    ("vec", "vec"),
    ("overrightarrow", "vec"),
    ("hat", "hat"),
    ("dot", "dot"),
    ("ddot", "ddot"),
    ("tilde", "tilde"),
    ("widetilde", "tilde"),
    ("bm", "bm"),
    ("boldsymbol", "boldsymbol"),
    ("breve", "breve"),
    ("check", "check"),
    ("acute", "acute"),
    ("grave", "grave"),
];

/// Most tokens of one answer.
const MAX_TOKENS: usize = 1_500;

/// The tokens of `text`; `None` where a piece is none, or there are too many.
pub(crate) fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut rest = text;
    let mut tokens = Vec::new();
    while let Some(c) = rest.chars().next() {
        if tokens.len() > MAX_TOKENS {
            return None;
        }
        let (token, length) = if c == '\\' { command(rest)? } else { plain(rest, c)? };
        tokens.extend(token);
        rest = &rest[length..];
    }
    Some(tokens)
}

/// A token that is no command, and its length in bytes.
fn plain(rest: &str, c: char) -> Option<(Option<Token>, usize)> {
    const SIGNS: &[(&str, char)] =
        &[("<=", '≤'), (">=", '≥'), ("!==", '≠'), ("!=", '≠'), ("==", '='), ("~=", '≈')];
    if let Some(degree) = ["^\\circ", "^{\\circ}", "^\\degree", "^{\\degree}", "^°", "^{°}"]
        .iter()
        .find(|form| rest.starts_with(**form))
    {
        return Some((Some(Token::Degree), degree.len()));
    }
    if let Some((form, sign)) = SIGNS.iter().find(|(form, _)| rest.starts_with(form)) {
        return Some((Some(Token::Char(*sign)), form.len()));
    }
    let length = c.len_utf8();
    let char = |c| Some((Some(Token::Char(c)), length));
    match c {
        ' ' | '\t' | '\r' | '\n' => Some((None, length)),
        '0'..='9' | '.' => number(rest),
        'd' => differential(rest).or_else(|| Some((Some(Token::Name("d".to_owned())), 1))),
        'a'..='z' | 'A'..='Z' => Some((Some(Token::Name(c.to_string())), 1)),
        '−' | '∸' => char('-'),
        '×' | '⋅' | '∗' | '∙' => char('*'),
        '÷' | '∕' | ':' => char('/'),
        'ℕ' => char('N'),
        '√' => Some((Some(Token::Command("sqrt")), length)),
        '+' | '-' | '*' | '/' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '^' | '_' | ',' | ';'
        | '=' | '<' | '>' | '≤' | '≥' | '≠' | '≈' | '!' | '&' | '∈' | '∉' | '∪' | '∩' | '∖'
        | '±' | '∅' | '∞' => char(c),
        _ => {
            let (_, name) = GREEK.iter().find(|(letter, _)| *letter == c)?;
            Some((Some(Token::Name((*name).to_owned())), length))
        }
    }
}

/// `12`, `1.5`, `.5`, `1E-3`, each with or without a per cent sign.
fn number(rest: &str) -> Option<(Option<Token>, usize)> {
    let digits = |from: usize| rest[from..].bytes().take_while(u8::is_ascii_digit).count();
    let mut end = digits(0);
    if rest[end..].starts_with('.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    if end == 0 {
        return None;
    }
    let mantissa = end;
    if rest[end..].starts_with('E') {
        let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
        let exponent = digits(end + 1 + sign);
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    let text = rest[..end].replace('+', "");
    if end == mantissa {
        let after = rest[end..].strip_prefix(' ').unwrap_or(&rest[end..]);
        if let Some(sign) = ["\\%", "%"].iter().find(|sign| after.starts_with(**sign)) {
            let length = rest.len() - after.len() + sign.len();
            return Some((Some(Token::Percent(text)), length));
        }
    }
    Some((Some(Token::Number(text)), end))
}

/// `dx` is one name.
fn differential(rest: &str) -> Option<(Option<Token>, usize)> {
    let after = rest[1..].trim_start_matches([' ', '\t', '\n']);
    let variable = after.chars().next().filter(char::is_ascii_alphabetic)?;
    let length = rest.len() - after.len() + 1;
    Some((Some(Token::Name(format!("d{variable}"))), length))
}

/// A token that begins with a backslash.
fn command(rest: &str) -> Option<(Option<Token>, usize)> {
    const SHORT: &[(&str, Option<char>)] = &[
        ("\\\\", Some('⏎')),
        ("\\{", Some('⦃')),
        ("\\}", Some('⦄')),
        ("\\(", Some('(')),
        ("\\)", Some(')')),
        ("\\|", Some('‖')),
        ("\\,", None),
        ("\\:", None),
        ("\\;", None),
        ("\\!", None),
        ("\\$", None),
        ("\\ ", None),
    ];
    if let Some((form, c)) = SHORT.iter().find(|(form, _)| rest.starts_with(form)) {
        return Some((c.map(Token::Char), form.len()));
    }
    let letters = rest[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
    let word = &rest[1..=letters];
    if word == "begin" || word == "end" {
        return matrix(rest, word == "begin", letters + 1);
    }
    // `\cosx` is `\cos x`: the longest known beginning counts.
    (1..=letters).rev().find_map(|length| {
        known(&word[..length], &rest[1 + length..]).map(|(token, more)| (token, 1 + length + more))
    })
}

/// The token of a command, and how much of what follows belongs to it.
fn known(word: &str, after: &str) -> Option<(Option<Token>, usize)> {
    if SPACES.contains(&word) {
        return Some((None, 0));
    }
    if let Some((_, c)) = CHARS.iter().find(|(name, _)| *name == word) {
        return Some((Some(Token::Char(*c)), 0));
    }
    if let Some(name) = COMMANDS.iter().find(|name| **name == word) {
        return Some((Some(Token::Command(name)), 0));
    }
    if NAMES.contains(&word) {
        return Some((Some(Token::Name(word.to_owned())), 0));
    }
    let (_, accent) = ACCENTS.iter().find(|(name, _)| *name == word)?;
    let inside = after.trim_start_matches([' ', '\t', '\n']).strip_prefix('{')?;
    let end = inside.find('}')?;
    let used = after.len() - inside.len() + end + 1;
    let text = inside[..end].replace([' ', '(', ')'], "");
    if word == "mathbb" && "NZQRCP".contains(&text) && text.len() == 1 {
        let set = text.chars().next()?;
        return Some((Some(Token::Char(set)), used));
    }
    let name = if accent.is_empty() { text } else { format!("{accent}{{{text}}}") };
    Some((Some(Token::Name(name)), used))
}

fn matrix(rest: &str, begin: bool, at: usize) -> Option<(Option<Token>, usize)> {
    let inside = rest[at..].strip_prefix('{')?;
    let end = inside.find('}')?;
    let kind = &inside[..end];
    let mut length = at + 1 + end + 1;
    if kind == "array" && begin {
        let columns = rest[length..].strip_prefix('{')?;
        length += 1 + columns.find('}')? + 1;
    } else if !["array", "matrix", "pmatrix", "bmatrix", "vmatrix"].contains(&kind) {
        return None;
    }
    let determinant = kind == "vmatrix";
    Some((Some(Token::Matrix { begin, determinant }), length))
}
