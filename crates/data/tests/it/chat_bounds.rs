//! Templates that loop, double, nest or recur end with an error that says so; long real ones do not.

use std::path::Path;

use data::{ChatTemplate, Content, Message};

use testing::golden;

fn render(source: &str) -> Result<String, String> {
    ChatTemplate::new(source, Path::new("t.jinja"), Vec::new())
        .and_then(|template| template.render(&[Message::user(1, "Where is it?")], true))
        .map_err(|error| error.to_string())
}

#[test]
fn templates_without_end_are_errors() {
    const STEPS: &str = "too many steps";
    const BYTES: &str = "builds more than 64 MiB";
    const DEPTH: &str = "nests values more than 64 deep";
    let doubled = |first: &str, step: &str| {
        format!(
            "{{% set ns = namespace(x={first}) %}}{{% for i in range(64) %}}{step}{{% endfor %}}."
        )
    };
    for (source, cause) in [
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".into(), STEPS),
        ("{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}".into(), STEPS),
        (format!("{{% for i in range(100000) %}}{}{{% endfor %}}", "x".repeat(100_000)), STEPS),
        ("{% for i in range(10**9) %}{% endfor %}".into(), "range"),
        (doubled("'ab'", "{% set ns.x = ns.x ~ ns.x %}"), BYTES),
        (doubled("'ab'", "{% set ns.x = ns.x + ns.x %}"), BYTES),
        (doubled("'ab'", "{% set ns.x = ns.x * 2 %}"), BYTES),
        (doubled("'ab'", "{% set ns.x = [ns.x, ns.x]|join %}"), BYTES),
        (doubled("'ab'", "{% set ns.x = ns.x.replace('a', 'aa') %}"), BYTES),
        (doubled("'ab'", "{% set ns.x = ns.x|replace('', ns.x) %}"), BYTES),
        (doubled("'ab'", "{% set ns.x = (ns.x ~ '\\n' ~ ns.x)|indent(4000, true) %}"), BYTES),
        (doubled("'ab'", "{% set ns.x = '%s%s'|format(ns.x, ns.x) %}"), BYTES),
        (doubled("'ab'", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"), BYTES),
        (doubled("[1]", "{% set ns.x = ns.x + ns.x %}"), BYTES),
        (doubled("[1]", "{% set ns.x = ns.x * 2 %}"), BYTES),
        (doubled("[1]", "{% set ns.x = [ns.x, ns.x] %}"), BYTES),
        (doubled("[1]", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}"), BYTES),
        (doubled("[1]", "{% set ns.x = [ns.x] %}{% set ns.x = [ns.x] %}"), DEPTH),
        (doubled("1", "{% set ns.x = namespace(y=ns.x) %}{% set ns.x = {'z': ns.x} %}"), DEPTH),
        ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".into(), DEPTH),
        ("{{ 'a' * 1000000000 }}".into(), BYTES),
        ("{{ '%1000000000d'|format(1) }}".into(), BYTES),
        ("{{ '{:1000000000}'.format(1) }}".into(), BYTES),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(), "recursion"),
        ("{% include 'chat_template' %}".into(), "not found"),
        ("{% include '/etc/passwd' %}".into(), "not found"),
        ("{{ 'a'*9**9*9**9*9**9*9**9*9**9 }}".into(), "multiplies in more than 8 places"),
    ] {
        let error = render(&source).expect_err(&source[..source.len().min(200)]);
        assert!(error.contains(cause), "{}: {error}", &source[..source.len().min(200)]);
        assert!(error.starts_with("t.jinja:"), "{error}");
    }
}

#[test]
fn operators_compute_what_they_did() {
    for (source, text) in [
        ("{{ 'a' ~ 1 ~ none ~ [1, 'b'] ~ nothing }}", "a1None[1, 'b']"),
        ("{{ 'a' + 'b' }}{{ 1 + 2 }}{{ 1.5 + 1 }}{{ [1] + [2, 'x'] }}", "ab32.5[1, 2, 'x']"),
        ("{{ 'ab' * 2 }}{{ 2 * 'ab' }}{{ 3 * 4 }}{{ [1] * 2 }}", "abababab12[1, 1]"),
        (
            "{{ ([1] + [2])[1] }}{{ (1, 2)[0] }}{{ {'a': 1, 'b': 2}['b'] }}{{ {'a': 1} }}",
            "212{'a': 1}",
        ),
        (
            "{{ 1 == 1.0 }}{{ 'a' != 'a' }}{{ 'a' in 'abc' }}{{ 2 in [1] }}{{ 'k' in {'k': 1} }}{{ 1 not in [1] }}",
            "TrueFalseTrueFalseTrueFalse",
        ),
        ("{% if messages[0].role == 'user' and messages|length == 1 %}x{% endif %}", "x"),
        (
            "{{ ['b', 'a']|sort|join(', ') }}{{ 'x y'.split(' ')|last }}{{ 'a'.upper() }}{{ ' a '|trim }}",
            "a, byAa",
        ),
        (
            "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ range(3)|list }}",
            "2[0, 1, 2]",
        ),
        ("{{ {'a': [1]}|tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ]\n}"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(text), "{source}");
    }
    let error = render("a\n{{ 1 + 'b' }}").expect_err("no sum");
    assert!(error.starts_with("t.jinja:2: chat template: ") && error.contains('+'), "{error}");
}

#[test]
fn chats_of_thousands_of_turns_are_rendered() {
    let template = ChatTemplate::from_dir(&golden("text/tokenizer")).expect("a template");
    let turn = |index: usize| Message {
        role: ["user", "assistant"][index % 2].to_owned(),
        content: vec![
            Content::Image,
            Content::Text { text: format!("Turn {index}: {}", "word ".repeat(100)) },
        ],
    };
    let messages: Vec<Message> = (0..5000).map(turn).collect();
    let text = template.render(&messages, true).expect("a long chat");
    assert!(text.contains("Turn 4999: ") && text.len() > 2_500_000, "{}", text.len());
    let long = "word ".repeat(1 << 20);
    let text = template.render(&[Message::user(10_000, &long)], true);
    assert!(text.is_ok_and(|text| text.len() > long.len()));
}
