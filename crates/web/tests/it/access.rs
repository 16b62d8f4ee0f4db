//! Who may ask, and by which names.

use std::fs;

use web::{Access, Key, Limits, Server, WebError};

use crate::{open, serve, serve_to, status};

const KEY: &str = "correct-horse-battery";

#[test]
fn names_of_others_are_refused() {
    let hosts = ["scorer".to_owned()];
    let server = serve_to(Access::new(None, &hosts, false).expect("a name"), Limits::default());
    let port = server.address.port();
    for (request, expected) in [
        (format!("GET / HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"), "200"),
        (format!("GET / HTTP/1.1\r\nhost: scorer:{port}\r\n"), "200"),
        (format!("GET http://localhost:{port}/ HTTP/1.1\r\nhost: localhost\r\n"), "200"),
        (
            format!(
                "GET / HTTP/1.1\r\nhost: localhost:{port}\r\norigin: http://localhost:{port}\r\n"
            ),
            "200",
        ),
        ("GET / HTTP/1.1\r\nhost: evil.example\r\n".to_owned(), "403"),
        (format!("GET / HTTP/1.1\r\nhost: evil.example:{port}\r\n"), "403"),
        ("GET / HTTP/1.0\r\nhost: evil.example\r\n".to_owned(), "403"),
        ("GET http://evil.example/ HTTP/1.1\r\nhost: localhost\r\n".to_owned(), "403"),
        ("GET / HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\n".to_owned(), "403"),
        ("GET / HTTP/1.1\r\nhost: localhost\r\norigin: null\r\n".to_owned(), "403"),
        ("GET / HTTP/1.1\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost: \r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost: localhost/evil\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost: \u{e9}vil\r\n".to_owned(), "400"),
    ] {
        let said = server.said(format!("{request}connection: close\r\n\r\n"));
        assert_eq!(status(&said), expected, "{request}: {said}");
        let is_json =
            said.contains("content-type: application/json") && said.contains("{\"error\":");
        assert_eq!(is_json, expected != "200", "{said}");
    }
    let said = server.said("GET / HTTP/1.1\r\nhost: evil.example\r\n\r\n");
    assert!(said.contains("hint: --allowed_hosts evil.example"), "{said}");
    let any = Access::new(None, &["*".to_owned()], false).expect("any");
    let server = serve_to(any, Limits::default());
    let said = server.said("GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
    assert_eq!(status(&said), "200", "{said}");
}

#[test]
fn a_key_is_asked_for() {
    let key = Key::new(KEY).expect("a key");
    let server = serve_to(Access::new(Some(key), &[], false).expect("no hosts"), Limits::default());
    for (header, expected) in [
        (String::new(), "401"),
        (format!("authorization: Bearer {KEY}\r\n"), "200"),
        (format!("Authorization: bearer {KEY}\r\n"), "200"),
        (format!("authorization: Bearer {KEY}x\r\n"), "401"),
        ("authorization: Bearer \r\n".to_owned(), "401"),
        ("authorization: Bearer\r\n".to_owned(), "401"),
        (format!("authorization: Basic {KEY}\r\n"), "401"),
        (format!("authorization: {KEY}\r\n"), "401"),
        (format!("authorization: Bearer {KEY}\r\nauthorization: Bearer x\r\n"), "400"),
        (format!("x-api-key: {KEY}\r\n"), "401"),
    ] {
        // Nothing is looked up, or read, before.
        for (request, of_good) in [("GET /", "200"), ("GET /none", "404")] {
            let said = server.said(format!(
                "{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{header}\r\n"
            ));
            let expected = if expected == "200" { of_good } else { expected };
            assert_eq!(status(&said), expected, "{header}: {said}");
            assert_eq!(said.contains("www-authenticate: Bearer"), expected == "401", "{said}");
            assert!(!said.contains(KEY), "{said}");
        }
    }
    let body = vec![b'x'; 1 << 20];
    let said = server.ask("POST /length", &body);
    assert_eq!(status(&said), "401", "{said}");
}

#[test]
fn other_machines_need_a_key_unless_the_user_says_otherwise() {
    let bind = |access| Server::bind("0.0.0.0:0", access, Limits::default());
    let error = bind(open()).expect_err("no key");
    assert!(matches!(error, WebError::NoKey(_)));
    assert!(error.to_string().contains("hint: --api_key_file FILE"), "{error}");
    let key = Key::new(KEY).expect("a key");
    bind(Access::new(Some(key), &[], false).expect("no hosts")).expect("a key");
    bind(Access::new(None, &[], true).expect("no hosts")).expect("the user says so");
    Server::bind("localhost:0", open(), Limits::default()).expect("this machine");
}

#[test]
fn keys_are_read_from_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    let find = || Key::find(Some(&file), "VLM_R1_NO_SUCH_VARIABLE");
    assert!(find().unwrap_err().to_string().contains("No such file"));
    for (text, expected) in [
        ("", "got 0 characters, expected at least 16"),
        ("short", "got 5 characters"),
        ("two words in the file", "expected letters"),
        ("correct-horse\nbattery-staple", "expected letters"),
    ] {
        fs::write(&file, text).expect("written");
        let error = find().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    fs::write(&file, format!("{KEY}\r\n")).expect("written");
    assert!(find().expect("read").expect("a key").is(KEY));
    assert!(Key::find(None, "VLM_R1_NO_SUCH_VARIABLE").expect("none").is_none());
}

#[test]
fn paths_lead_nowhere_else() {
    let server = serve(Limits::default());
    for (path, expected) in [
        ("/length/../", "400"),
        ("/../etc/passwd", "400"),
        ("/%2e%2e/etc/passwd", "400"),
        ("/..%2fetc%2fpasswd", "400"),
        ("/%2e%2e%5cetc", "400"),
        ("/%00", "400"),
        ("/%", "400"),
        ("/%c0%ae%c0%ae/", "400"),
        ("//", "404"),
        ("//evil.example/", "404"),
        ("/l%65ngth", "404"),
        ("/none", "404"),
        ("/?path=../x", "200"),
    ] {
        let said = server.ask(&format!("GET {path}"), b"");
        assert_eq!(status(&said), expected, "{path}: {said}");
    }
}

#[test]
fn browsers_are_told_what_they_may_do() {
    let server = serve(Limits::default());
    for said in [server.ask("GET /", b""), server.ask("GET /none", b""), server.ask("GET /..", b"")]
    {
        for header in [
            "x-content-type-options: nosniff",
            "x-frame-options: DENY",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "content-security-policy: default-src 'none'; frame-ancestors 'none'",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(said.contains(header), "{header}: {said}");
        }
    }
}
