//! Requests that are long, odd, or two in one.

use web::Limits;

use crate::{serve, status};

const POST: &str = "POST /length HTTP/1.1\r\nhost: localhost\r\n";

#[test]
fn long_bodies_are_refused() {
    let server = serve(Limits { body_bytes: 1000, ..Limits::default() });
    // At once, without a byte of it.
    for length in ["1001", "99999999999", "18446744073709551000"] {
        for more in ["", "expect: 100-continue\r\n"] {
            let said = server.said(format!("{POST}{more}content-length: {length}\r\n\r\n"));
            assert_eq!(status(&said), "413", "{length}: {said}");
            assert!(said.contains("{\"error\":\"body over 1000 bytes\"}"), "{said}");
        }
    }
    // One that is sent whole before the response is read.
    let said = server.ask("POST /length", &vec![b'x'; 3900]);
    assert_eq!(status(&said), "413", "{said}");
    let chunk = format!("fff\r\n{}\r\n", "x".repeat(0xfff));
    let said = server.said(format!("{POST}transfer-encoding: chunked\r\n\r\n{chunk}"));
    assert_eq!(status(&said), "413", "{said}");
    // A chunk that says it is endless.
    let said = server.said(format!(
        "{POST}transfer-encoding: chunked\r\n\r\nffffffffffff\r\n{}",
        "x".repeat(2000)
    ));
    assert_eq!(status(&said), "413", "{said}");
    let said = server.ask("POST /length", &[b'x'; 1000]);
    assert!(said.ends_with("1000"), "{said}");
}

#[test]
fn broken_heads_are_refused() {
    let server = serve(Limits::default());
    let long = "x".repeat(200_000);
    let many: String = (0..2000).map(|i| format!("x{i}: y\r\n")).collect();
    for (head, allowed) in [
        ("GET\r\n\r\n".to_owned(), ["400", "400"]),
        ("\x16\x03\x01\x02\x00\r\n\r\n".to_owned(), ["400", "400"]),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), ["400", "505"]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), ["400", "505"]),
        (format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"), ["414", "431"]),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n"), ["431", "431"]),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"), ["431", "431"]),
        ("GET / HTTP/1.1\r\nhost: localhost\r\nx y: z\r\n\r\n".to_owned(), ["400", "400"]),
        ("GET / HTTP/1.1\r\nhost : localhost\r\n\r\n".to_owned(), ["400", "400"]),
    ] {
        let mut stream = server.connect();
        // It may be refused before its end.
        let _ = std::io::Write::write_all(&mut stream, head.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let said = crate::all_of(&mut stream);
        let short: String = head.chars().take(60).collect();
        // A reset can overtake the response to one who still sends.
        assert!(said.is_empty() || allowed.contains(&status(&said)), "{short}: {said}");
        server.is_well();
    }
}

/// What others on the way may take for two requests is one, and the connection ends with it.
#[test]
fn a_request_hides_no_other() {
    let server = serve(Limits::default());
    let hidden = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let chunked = format!("0\r\n\r\n{hidden}");
    let length = chunked.len();
    for headers in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
        format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"),
        "content-length: 5\r\ncontent-length: 6\r\n".to_owned(),
        "content-length: 5, 6\r\n".to_owned(),
        "content-length: +5\r\n".to_owned(),
        "content-length: 0x5\r\n".to_owned(),
        "transfer-encoding: xchunked\r\n".to_owned(),
        "transfer-encoding: chunked, identity\r\n".to_owned(),
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n".to_owned(),
        "transfer-encoding: \x0bchunked\r\n".to_owned(),
        " transfer-encoding: chunked\r\n".to_owned(),
        "transfer-encoding : chunked\r\n".to_owned(),
        "transfer-encoding: chunked\r\n".to_owned(),
    ] {
        let said = server.said(format!("{POST}{headers}\r\n{chunked}"));
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{headers}: {said}");
        assert!(!said.ends_with("hello"), "{headers}: {said}");
        assert!(["400", "200"].contains(&status(&said)), "{headers}: {said}");
    }
    // HTTP/1.0 knows no chunks.
    let said = server
        .said(format!("POST /length HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"));
    assert_eq!(status(&said), "400", "{said}");
    server.is_well();
}

#[test]
fn requests_in_a_row_are_answered_up_to_their_number() {
    let server = serve(Limits { requests_of_connection: 3, ..Limits::default() });
    let one = "POST /length HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nab";
    let said = server.said(one.repeat(50));
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 3, "{said}");
    assert_eq!(said.matches("connection: close").count(), 1, "{said}");
    // Bodies that are refused end it as well: what follows would be read as a request.
    let said = server.said("POST / HTTP/1.1\r\nhost: evil.example\r\n\r\n".to_owned() + one);
    assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
}

#[test]
fn old_callers_are_answered() {
    let server = serve(Limits::default());
    for head in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nhost: localhost\r\n\r\n"] {
        let said = server.said(head);
        assert!(said.contains(" 200 OK") && said.ends_with("hello"), "{said}");
    }
    let said = server.said("HEAD / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(said.contains(" 200 OK") && said.ends_with("\r\n\r\n"), "{said}");
    for (request, expected) in [
        ("OPTIONS *", "404"),
        ("CONNECT localhost:80", "404"),
        ("CONNECT evil.example:80", "403"),
        ("GET localhost", "404"),
    ] {
        let said = server
            .said(format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"));
        assert!([expected, "400"].contains(&status(&said)), "{request}: {said}");
        server.is_well();
    }
    for (head, expected) in [("DELETE /", "405"), ("GET /none", "404"), ("BREW /length", "405")] {
        assert_eq!(status(&server.ask(head, b"")), expected, "{head}");
    }
}
