//! LaTeX compared as text: the normalisation of the MATH benchmark, exact to the reference.

use python::text::is_integer;

/// Whether the last box of `student`, or all of it where there is none, is `truth` once both are
/// normalised.
pub fn same_latex(student: &str, truth: &str) -> bool {
    match last_box(student) {
        Boxed::None => equivalent(student, truth),
        Boxed::Content(content) => equivalent(content, truth),
        // Half a box equals nothing.
        Boxed::Broken => false,
    }
}

enum Boxed<'a> {
    None,
    Content(&'a str),
    Broken,
}

fn last_box(text: &str) -> Boxed<'_> {
    if let Some((_, last)) = text.rsplit_once("\\boxed ") {
        return Boxed::Content(last.split('$').next().unwrap_or_default());
    }
    let Some(start) = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox")) else {
        return Boxed::None;
    };
    let mut open = 0_i64;
    let closing = text[start..].bytes().position(|b| {
        open += i64::from(b == b'{') - i64::from(b == b'}');
        b == b'}' && open == 0
    });
    // A box that never closes counts as none.
    let Some(closing) = closing else {
        return Boxed::None;
    };
    match text[start..start + closing].strip_prefix("\\boxed{") {
        Some(content) => Boxed::Content(content),
        None => Boxed::Broken,
    }
}

fn equivalent(a: &str, b: &str) -> bool {
    match (normalized(a), normalized(b)) {
        (Some(a), Some(b)) => a == b,
        // Where the normalisation fails, the texts are compared as they are.
        _ => a == b,
    }
}

/// `None` where the reference fails on the text.
fn normalized(text: &str) -> Option<String> {
    let mut text = text.replace('\n', "").replace("\\!", "");
    for (from, to) in [
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        text = text.replace(from, to);
    }
    let mut around_unit = text.split("\\text{ ");
    let before = around_unit.next().unwrap_or_default().to_owned();
    if around_unit.count() > 1 {
        return None;
    }
    let mut text = before.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    let sides: Vec<&str> = text.split('=').collect();
    if let [left, right] = sides[..]
        && left.chars().count() <= 2
    {
        text = right.to_owned();
    }
    let text = braced_roots(&text)?.replace(' ', "");
    let mut text = braced_fractions(&text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    slash_to_fraction(text)
}

/// `\sqrt3` to `\sqrt{3}`.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let first = part.chars().next()?;
        out += "\\sqrt";
        if first == '{' {
            out += part;
        } else {
            out += &format!("{{{first}}}{}", &part[first.len_utf8()..]);
        }
    }
    Some(out)
}

/// `\frac12` to `\frac{1}{2}`; one argument alone leaves the text as it is.
fn braced_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += "\\frac";
        let mut chars = part.chars();
        let above = chars.next()?;
        if above == '{' {
            out += part;
            continue;
        }
        let Some(below) = chars.next() else {
            return Some(text.to_owned());
        };
        let rest = chars.as_str();
        if below == '{' {
            out += &format!("{{{above}}}{{{rest}");
        } else {
            out += &format!("{{{above}}}{{{below}}}{rest}");
        }
    }
    Some(out)
}

/// `3/4` to `\frac{3}{4}`; the reference fails where a side of the only slash is no integer.
fn slash_to_fraction(text: String) -> Option<String> {
    let sides: Vec<&str> = text.split('/').collect();
    let [above, below] = sides[..] else {
        return Some(text);
    };
    if !is_integer(above) || !is_integer(below) {
        return None;
    }
    if is_canonical(above) && is_canonical(below) {
        return Some(format!("\\frac{{{above}}}{{{below}}}"));
    }
    Some(text)
}

/// Whether `str(int(text)) == text`.
fn is_canonical(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain && (digits == "0" && text == "0" || !digits.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalisation_by_hand() {
        for (a, b) in [
            ("\\frac12", "1/2"),
            ("\\dfrac{1}{2}", "0.5"),
            ("\\sqrt3", "\\sqrt{3}"),
            ("x = 5", "5"),
            ("5\\text{ cm}", "5"),
            ("90^\\circ", "90"),
            ("\\left( 1, 2 \\right)", "(1,2)"),
            ("so \\boxed{ 7 }", "7"),
        ] {
            assert!(same_latex(a, b), "{a} {b}");
        }
        for (a, b) in [("1/2", "2/4"), ("a/b", "a / b"), ("\\fbox{7}", "7"), ("\\frac", "\\frac ")]
        {
            assert!(!same_latex(a, b), "{a} {b}");
        }
        assert!(same_latex("\\frac", "\\frac"));
    }
}
