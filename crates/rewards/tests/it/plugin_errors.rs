//! What is said of rewards of one's own that cannot be loaded, or fail in odd words.

use rewards::RewardError;

use crate::plugins::{Folder, quick, score, set};

#[test]
fn what_python_lacks_is_not_its_interpreter() {
    let folder = Folder::new();
    for (text, expected) in [
        ("def other(completions): pass", "no function `score`; defined: other"),
        ("score = 3", "no function `score`; defined: none"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("def score(", "SyntaxError"),
        ("raise ValueError('a \\udc80 b')", "a \\udc80 b"),
    ] {
        let error = set(&folder.python(text), quick()).err().expect("it does not load");
        assert!(matches!(error, RewardError::PluginLoad { .. }), "{error}");
        let said = error.to_string();
        assert!(said.starts_with("reward `score` cannot be loaded: "), "{said}");
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(!said.contains("does not start"), "{said}");
    }
}

#[test]
fn half_a_character_in_an_exception_is_shown() {
    let folder = Folder::new();
    for text in [
        "def score(completions, **rest):\n    raise ValueError('half \\ud83d here')",
        "def score(completions, **rest):\n    return ['half \\ud83d here']",
        "class Half(Exception):\n    def __str__(self):\n        return 'half \\ud83d here'\n\ndef score(completions, **rest):\n    raise Half()",
    ] {
        let set = set(&folder.python(text), quick()).expect("it loads");
        let said = score(&set, &["a"]).expect_err("it fails").to_string();
        assert!(said.contains("half \\ud83d here"), "{said}");
        assert!(said.starts_with("reward `score`, rows.jsonl:1"), "{said}");
    }
}
