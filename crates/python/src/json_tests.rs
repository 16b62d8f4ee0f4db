//! What Python's `json.loads` reads, refuses and says.

use super::*;

fn text(text: &str) -> Json<'_> {
    Json::Text(text.into())
}

#[test]
fn reads_what_python_reads() {
    assert_eq!(
        loads(" [1, -0.5e1, true, null, \"a\\u00e9\\ud83d\\ude00\\ud800\"]\n"),
        Some(Json::List(vec![
            Json::Integer("1".into()),
            Json::Number(-5.0),
            Json::Bool(true),
            Json::Null,
            text("aé😀\u{fffd}"),
        ]))
    );
    assert_eq!(loads("1e999"), Some(Json::Number(f64::INFINITY)));
    assert_eq!(loads("-Infinity"), Some(Json::Number(f64::NEG_INFINITY)));
    assert!(matches!(loads("NaN"), Some(Json::Number(nan)) if nan.is_nan()));
    let mut object = loads("{\"a\": 1, \"b\": {}, \"a\": 2}").expect("readable");
    assert_eq!(object.take("a"), Some(Json::Integer("2".into())));
    assert_eq!(object.take("c"), None);
    assert_eq!(loads("\"\\ud800\\u0041\""), Some(text("\u{fffd}A")));
}

#[test]
fn a_value_says_what_it_does_not_hold() {
    let text = r#"{"a": [NaN, 1e400, -Infinity, "\ud83d", "\ufffd"], "\udc00": 12345678901234567890123, "b": -0}"#;
    let parsed = parse(text).expect("Python reads it");
    let expected = serde_json::json!({
        "a": [null, null, null, "\u{fffd}", "\u{fffd}"],
        "\u{fffd}": 12345678901234567890123.0,
        "b": 0,
    });
    assert_eq!(parsed.value, expected);
    assert_eq!(parsed.value["b"].to_string(), "0");
    let lost: Vec<(String, LostKind)> =
        parsed.lost.into_iter().map(|lost| (lost.path.join("."), lost.what)).collect();
    let not_finite = LostKind::NotFinite;
    assert_eq!(
        lost,
        [
            ("a.0".to_owned(), not_finite("NaN")),
            ("a.1".to_owned(), not_finite("Infinity")),
            ("a.2".to_owned(), not_finite("-Infinity")),
            ("a.3".to_owned(), LostKind::Surrogate),
            (String::new(), LostKind::Surrogate),
            ("\u{fffd}".to_owned(), LostKind::BigInteger),
        ]
    );
    let plain = r#"{"a": [1, 2.5, -3, 1e2, true, null, "x"], "b": {"c": 18446744073709551615}}"#;
    let parsed = parse(plain).expect("JSON");
    assert_eq!(parsed.value, serde_json::from_str::<Value>(plain).expect("JSON"));
    assert!(parsed.lost.is_empty());
}

#[test]
fn lists_of_an_object_are_read_item_by_item() {
    let text = r#"{"a": [1, "x", {"b": [NaN, -0.0, null]}], "c": {"d": []}, "a": []}"#;
    let mut seen = Vec::new();
    let mut visit = |key: &str, part: Part<'_>| {
        seen.push(match part {
            Part::List => format!("{key}:"),
            Part::Item(item) => format!("{key} - {item}"),
            Part::Value(value) => format!("{key} {value}"),
        });
    };
    parts(text, &mut visit).expect("an object");
    let expected =
        ["a:", "a - 1", "a - \"x\"", "a - {\"b\": [NaN, 0, null]}", "c {\"d\": []}", "a:"];
    assert_eq!(seen, expected);
    for (bad, at, reason) in [
        ("[]", 0, "expected an object"),
        ("{\"a\": [1 2]}", 9, "expected `,` or `]`"),
        ("{\"a\": [1", 8, "it ends too early"),
        ("{} 1", 3, "more after the end of the value"),
    ] {
        assert_eq!(parts(bad, &mut |_, _| {}), Err(JsonError { at, reason }));
    }
}

#[test]
fn a_mistake_has_a_place_and_a_reason() {
    for (text, at, reason) in [
        ("{\"a\": 1", 7, "it ends too early"),
        ("{\"a\": oops}", 6, "expected a value"),
        ("{\"a\" 1}", 5, "expected `:`"),
        ("{\"a\": 1 \"b\"}", 8, "expected `,` or `}`"),
        ("[1 2]", 3, "expected `,` or `]`"),
        ("{'a': 1}", 1, "expected a key in double quotes"),
        ("{} {}", 3, "more after the end of the value"),
        ("[\"a", 3, "it ends too early"),
        ("[\"a\nb\"]", 3, "a control character in a text"),
    ] {
        assert_eq!(parse(text), Err(JsonError { at, reason }), "{text}");
    }
    let deep = "[".repeat(1000) + &"]".repeat(1000);
    assert_eq!(parse(&deep).map_err(|error| error.reason), Err("nested more than 900 deep"));
    let nested = "[".repeat(500) + &"]".repeat(500);
    assert!(parse(&nested).is_ok());
}

#[test]
fn refuses_what_python_refuses() {
    for bad in [
        "",
        "01",
        "1.",
        ".5",
        "+1",
        "-",
        "1e",
        "0x1",
        "[1,]",
        "[1 2]",
        "{\"a\": 1,}",
        "{a: 1}",
        "{\"a\" 1}",
        "'a'",
        "\"a",
        "\"a\nb\"",
        "\"\\x41\"",
        "\"\\u12g4\"",
        "\"\\ud83d\\u12g4\"",
        "True",
        "nan",
        "[1] 2",
        "\u{feff}[]",
        "\u{a0}1",
        "[",
        "{\"a\"",
        "\"\\u12é4\"",
    ] {
        assert_eq!(loads(bad), None, "{bad}");
    }
    assert!(loads(&"9".repeat(4300)).is_some());
    assert_eq!(loads(&"9".repeat(4301)), None);
    assert!(loads(&format!("{}.0", "9".repeat(4301))).is_some());
    assert_eq!(loads(&"[".repeat(100_000)), None);
    let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
    assert!(loads(&nested(MAX_DEPTH)).is_some());
    assert_eq!(loads(&nested(MAX_DEPTH + 2)), None);
}
