//! Many callers at once who keep the server waiting.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use web::Limits;

use crate::{BIG_BYTES, LONG, all_of, serve, status};

/// Whether the server has closed the connection, by now.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a mode");
    let closed = match stream.read(&mut [0; 64]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).expect("a mode");
    closed
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Within the default bounds, and with places for a fraction of them: the oldest then go.
#[test]
fn half_open_heads_keep_nobody_waiting() {
    for places in [512, 20] {
        let server =
            serve(Limits { connections: places, connections_of_peer: places, ..Limits::default() });
        let begins = ["", "G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: localhost\r\nx: "];
        let mut open: Vec<TcpStream> = Vec::new();
        for index in 0..200 {
            open.push(server.sent(begins[index % begins.len()]));
            if index % 50 == 0 {
                server.is_well();
            }
        }
        let start = Instant::now();
        server.is_well();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let mut count = || {
            let closed = open.iter_mut().map(is_closed);
            closed.filter(|is| !is).count()
        };
        if places < 200 {
            wait_until("the oldest go", || count() <= places);
        } else {
            assert_eq!(count(), 200, "who disturbs nobody may stay");
        }
    }
}

#[test]
fn a_head_that_trickles_has_its_time() {
    let server = serve(Limits { head: Duration::from_millis(400), ..Limits::default() });
    let mut stream = server.sent("GET / HTTP/1.1\r\nx: ");
    let start = Instant::now();
    wait_until("it is sent away", || {
        thread::sleep(Duration::from_millis(20));
        stream.write_all(b"y").is_err()
    });
    assert!(start.elapsed() > Duration::from_millis(350));
    server.is_well();
}

#[test]
fn who_is_idle_or_silent_is_sent_away() {
    let server = serve(Limits { idle: Duration::from_millis(300), ..Limits::default() });
    let mut silent = server.connect();
    let mut idle = server.sent("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let said = all_of(&mut idle);
    assert!(said.ends_with("hello") && !said.contains("connection: close"), "{said}");
    assert_eq!(all_of(&mut silent), "");
}

#[test]
fn responses_that_nobody_reads_keep_nobody_waiting() {
    let server = serve(Limits {
        connections: 40,
        connections_of_peer: 40,
        response: Duration::from_millis(600),
        ..Limits::default()
    });
    let ask = "GET /big HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut deaf: Vec<TcpStream> = (0..32).map(|_| server.sent(ask)).collect();
    server.is_well();
    // One that reads has all of it, in whatever time.
    let mut reader = server.sent(ask);
    let mut count = 0;
    let mut some = vec![0; 1 << 20];
    while count < BIG_BYTES {
        count += reader.read(&mut some).expect("it goes on");
    }
    // The others are cut off, having read nothing.
    thread::sleep(Duration::from_millis(900));
    server.is_well();
    for stream in &mut deaf {
        assert!(all_of(stream).len() < BIG_BYTES);
    }
    // Nor do more of them than there are places.
    let _deaf: Vec<TcpStream> = (0..80).map(|_| server.sent(ask)).collect();
    server.is_well();
}

#[test]
fn bodies_byte_by_byte_have_their_time() {
    let server = serve(Limits { body: Duration::from_millis(500), ..Limits::default() });
    let heads = ["content-length: 1000", "transfer-encoding: chunked"];
    let slow = heads.map(|header| {
        let head = format!("POST /length HTTP/1.1\r\nhost: localhost\r\n{header}\r\n\r\n");
        let mut stream = server.sent(head);
        thread::spawn(move || {
            let mut writer = stream.try_clone().expect("a second hand");
            let writing = thread::spawn(move || {
                while writer.write_all(b"1").is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            });
            let said = all_of(&mut stream);
            writing.join().expect("it ends");
            said
        })
    });
    server.is_well();
    let [length, chunked] = slow.map(|slow| slow.join().expect("a response"));
    assert_eq!(status(&length), "408", "{length}");
    assert!(length.contains("{\"error\":\"no whole body after 0.5 s\"}"), "{length}");
    // `1111...` is the length of a chunk, of too many digits.
    assert!(["400", "408"].contains(&status(&chunked)), "{chunked}");
}

/// Bodies of others, begun and not ended, take all the room that there is.
#[test]
fn half_sent_bodies_make_room() {
    let server = serve(Limits { body_bytes: 1 << 20, bodies_bytes: 4 << 20, ..Limits::default() });
    let half = |index: usize| {
        let head = match index % 2 {
            0 => "content-length: 1000000\r\n\r\n",
            _ => "transfer-encoding: chunked\r\n\r\nf4240\r\n",
        };
        let mut stream = server.sent(format!("POST /length HTTP/1.1\r\nhost: localhost\r\n{head}"));
        // It may be sent away meanwhile.
        let _ = stream.write_all(&vec![b'x'; 900_000]);
        stream
    };
    let mut open: Vec<TcpStream> = (0..12).map(half).collect();
    let body = vec![b'x'; 1 << 20];
    for _ in 0..3 {
        let said = server.ask("POST /length", &body);
        assert!(said.ends_with("1048576"), "{said}");
    }
    let gone = open.iter_mut().map(is_closed).filter(|is| *is).count();
    assert!((8..12).contains(&gone), "{gone} of 12 went");
    server.is_well();
}

/// Responses that are not taken lie in memory.
#[test]
fn unread_responses_make_room() {
    let server = serve(Limits { bodies_bytes: 4 * BIG_BYTES, ..Limits::default() });
    let ask = "GET /big HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut deaf = Vec::new();
    for _ in 0..10 {
        deaf.push(server.sent(ask));
        thread::sleep(Duration::from_millis(60));
    }
    thread::sleep(Duration::from_millis(300));
    // One more needs room, and so does a body.
    let _one_more = server.sent(ask);
    let said = server.ask("POST /length", &vec![b'x'; 1 << 20]);
    assert!(said.ends_with("1048576"), "{said}");
    let whole = deaf.iter_mut().map(|stream| all_of(stream).len());
    let kept = whole.filter(|length| *length > BIG_BYTES).count();
    assert!((1..=4).contains(&kept), "{kept} of 10 stay");
}

/// A connection that is being answered is sent away for nobody.
#[test]
fn one_address_has_its_share_and_no_more() {
    let server = serve(Limits { connections_of_peer: 4, ..Limits::default() });
    let ask = "GET /slow HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut slow: Vec<TcpStream> = (0..4).map(|_| server.sent(ask)).collect();
    thread::sleep(Duration::from_millis(200));
    let said = server.said(ask);
    assert_eq!(status(&said), "503", "{said}");
    assert!(said.ends_with("{\"error\": \"too many connections of one address\"}"), "{said}");
    assert!(said.contains("retry-after: 1"), "{said}");
    for stream in &mut slow {
        assert!(all_of(stream).ends_with("slow"));
    }
    server.is_well();
}

/// All places are taken by requests that are answered: new ones wait.
#[test]
fn where_all_are_answered_new_ones_wait() {
    let server = serve(Limits { connections: 3, ..Limits::default() });
    let ask = "GET /slow HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut slow: Vec<TcpStream> = (0..9).map(|_| server.sent(ask)).collect();
    for stream in &mut slow {
        assert!(all_of(stream).ends_with("slow"));
    }
}

#[test]
fn a_stop_answers_what_was_asked_and_waits_for_nobody_else() {
    let mut server = serve(Limits::default());
    let mut slow = server.sent("GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut idle = server.sent("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut half = server.sent("GET / HT");
    thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    server.end();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(all_of(&mut slow).ends_with("slow"));
    assert!(all_of(&mut idle).ends_with("hello"));
    assert_eq!(all_of(&mut half), "");
}
