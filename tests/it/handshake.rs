//! The way in: WebSocket handshakes, good, bad, slow and endless.

use std::io::{Read, Write};

use serde_json::json;

use crate::support::{
    frame,
    http::{Body, Http},
    node::Node,
    peer::{KEY, KEY_ACCEPTED, Peer, number, read_head, tcp, upgrade_request},
    wait::{LIMIT, pause, wait_until},
    witness::Witness,
};

#[test]
fn the_answer_proves_that_the_key_was_read_and_echoes_the_subprotocol() {
    let node = Node::start();

    for (offered, echoed) in [
        ("", None),
        ("Sec-WebSocket-Protocol: landline.v1\r\n", Some("landline.v1")),
        ("Sec-WebSocket-Protocol: chat, landline.v1\r\n", Some("landline.v1")),
        ("Sec-WebSocket-Protocol: chat\r\n", None),
    ] {
        let mut http = node.http();
        http.send(&upgrade_request(node.addr(), offered));
        let reply = http.reply(Body::Absent);
        assert_eq!(reply.status, 101, "{reply:?}");
        assert_eq!(reply.header("sec-websocket-accept"), Some(KEY_ACCEPTED));
        assert_eq!(reply.header("sec-websocket-protocol"), echoed, "offered: {offered:?}");
        assert_eq!(reply.header("sec-websocket-extensions"), None);
    }
}

#[test]
fn hello_is_answered_with_what_a_client_must_know() {
    let node = Node::with(&["--max-message", "64KiB", "--heartbeat", "7s"]);
    let mut peer = node.peer();

    let anonymous = peer.ask(json!({"type": "hello"}), "welcome");
    let named = peer.ask(json!({"type": "hello", "user": "anna", "client": "test"}), "welcome");

    assert_eq!(anonymous["user"], json!(null));
    assert_eq!(anonymous["server"]["name"], "landline");
    assert_eq!(number(&anonymous, "heartbeat_ms"), 7_000);
    assert_eq!(number(&anonymous, "max_message_bytes"), 64 * 1024);
    assert_eq!(named["user"], "anna");
    assert_eq!(named["connection"], anonymous["connection"], "one connection, one name");
    let other = node.peer().ask(json!({"type": "hello"}), "welcome");
    assert_ne!(other["connection"], anonymous["connection"]);
}

#[test]
fn a_handshake_may_arrive_byte_by_byte_or_together_with_the_first_message() {
    let node = Node::start();
    let request = upgrade_request(node.addr(), "");
    let ping = frame::masked(frame::TEXT, br#"{"type":"ping","id":7}"#);

    let mut slow = tcp(node.addr(), None);
    for byte in request.bytes() {
        slow.write_all(&[byte]).unwrap();
    }
    let (head, rest) = read_head(&mut slow);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    Peer::over(slow, &rest).fence();

    let mut eager = tcp(node.addr(), None);
    eager.write_all(&[request.as_bytes(), &ping].concat()).unwrap();
    let (head, rest) = read_head(&mut eager);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(Peer::over(eager, &rest).expect("pong")["id"], 7);
}

#[test]
fn a_handshake_may_follow_other_requests_on_the_connection() {
    let node = Node::start();
    let mut stream = tcp(node.addr(), None);
    let get = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", node.addr());

    let both = get + &upgrade_request(node.addr(), "");
    stream.write_all(both.as_bytes()).unwrap();
    let (health, mut rest) = read_head(&mut stream);
    assert!(health.starts_with("HTTP/1.1 200 "), "{health}");
    while !String::from_utf8_lossy(&rest).contains(KEY_ACCEPTED) || !rest.ends_with(b"\r\n\r\n") {
        let mut bytes = [0; 1_024];
        let count = stream.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "{:?}", String::from_utf8_lossy(&rest));
        rest.extend_from_slice(&bytes[..count]);
    }

    Peer::over(stream, &[]).fence();
}

#[test]
fn what_is_not_a_handshake_is_refused_in_http() {
    let node = Node::start();
    let good = upgrade_request(node.addr(), "");
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };

    for (request, allowed) in [
        (replaced("Upgrade: websocket\r\n", ""), &[400, 426][..]),
        (replaced("Connection: Upgrade\r\n", "Connection: close\r\n"), &[400, 426]),
        (replaced("Version: 13", "Version: 8"), &[400, 426]),
        (replaced("Sec-WebSocket-Version: 13\r\n", ""), &[400, 426]),
        (replaced(&format!("Sec-WebSocket-Key: {KEY}\r\n"), ""), &[400]),
        (replaced(KEY, "short"), &[400]),
        (replaced("GET /ws", "POST /ws"), &[400, 405]),
        (replaced("GET /ws", "GET /other"), &[404]),
        (replaced("HTTP/1.1", "HTTP/1.0"), &[400, 426, 505]),
        (replaced("HTTP/1.1", "HTTP/3.0"), &[400, 505]),
        ("nonsense\r\n\r\n".to_owned(), &[400]),
        ("GET  /ws\r\n\r\n".to_owned(), &[400]),
        (replaced("Host: ", "Ho st: "), &[400]),
        ("GET /ws HTTP/1.1\r\n\r\n".to_owned(), &[400]),
    ] {
        let mut http = node.http();
        http.send(&request);
        let reply = http.reply(Body::Expected);
        assert!(allowed.contains(&reply.status), "{request:?} was answered {reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply:?}");
        if reply.status == 426 {
            assert_eq!(reply.header("upgrade").map(str::to_lowercase), Some("websocket".into()));
        }
    }
}

#[test]
fn a_head_that_breaks_off_anywhere_leaves_nothing_behind() {
    let node = Node::start();
    let witness = Witness::start(&node);
    let (files, threads) = (node.open_files(), node.threads());
    let request = upgrade_request(node.addr(), "");

    for end in 0..request.len() {
        let mut stream = tcp(node.addr(), None);
        stream.write_all(&request.as_bytes()[..end]).unwrap();
        if end % 2 == 0 {
            crate::support::peer::reset(&stream);
        }
    }

    wait_until("files and threads to be given back", LIMIT, || {
        node.open_files() <= files && node.threads() <= threads
    });
    witness.finish();
}

#[test]
fn an_oversized_head_is_refused_with_431() {
    let node = Node::start();
    let long = "x".repeat(20 * 1024);
    let many: String = (0..200).map(|number| format!("X-{number}: 1\r\n")).collect();
    let endless = format!("X-Long: {}", "y".repeat(64 * 1024));

    for (request, allowed) in [
        (upgrade_request(node.addr(), &format!("X-Long: {long}\r\n")), &[431][..]),
        (upgrade_request(node.addr(), &many), &[431]),
        (format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"), &[414, 431]),
        (format!("GET /ws HTTP/1.1\r\nHost: localhost\r\n{endless}"), &[431]),
    ] {
        let mut http = node.http();
        http.send(&request);
        let reply = http.reply(Body::Expected);
        assert!(allowed.contains(&reply.status), "{} bytes: {reply:?}", request.len());
        wait_until("the connection to be closed", LIMIT, || http.is_closed());
    }
}

#[test]
fn a_head_that_does_not_arrive_in_time_is_closed_however_slowly_it_trickles() {
    let node = Node::with(&["--handshake-timeout", "1s"]);
    let witness = Witness::start(&node);
    let mut silent = node.http();
    let mut partial = node.http();
    partial.send("GET /ws HTTP/1.1\r\nHo");
    let mut trickling = tcp(node.addr(), None);
    trickling.write_all(b"GET /ws HTTP/1.1\r\nX-Slow: ").unwrap();

    wait_until("the trickling connection to be closed", LIMIT, || {
        trickling.write_all(b"x").is_err() || Http::has_ended(&trickling)
    });
    assert_eq!(partial.reply(Body::Expected).status, 408);
    for http in [&mut silent, &mut partial] {
        wait_until("the connection to be closed", LIMIT, || http.is_closed());
    }

    witness.finish();
}

#[test]
fn a_body_that_does_not_arrive_in_time_is_closed() {
    let node = Node::with(&["--handshake-timeout", "1s"]);
    let mut http = node.http();

    let head = format!("Host: {}\r\nContent-Length: 100", node.addr());
    http.send(&format!("POST /v1/topics/a/events HTTP/1.1\r\n{head}\r\n\r\n[1, "));

    assert_eq!(http.reply(Body::Expected).status, 408);
    wait_until("the connection to be closed", LIMIT, || http.is_closed());
}

#[test]
fn a_slow_head_within_its_time_is_served() {
    let node = Node::with(&["--handshake-timeout", "20s"]);
    let mut http = node.http();

    for piece in ["GET /hea", "lthz HT", "TP/1.1\r\nHost: localhost\r", "\n\r", "\n"] {
        http.send(piece);
        pause(std::time::Duration::from_millis(50));
    }

    assert_eq!(http.reply(Body::Expected).status, 200);
}

#[test]
fn one_connection_too_many_is_told_to_come_back_and_can() {
    let node = Node::with(&["--max-connections", "5"]);
    let mut peers: Vec<Peer> = (0..5).map(|_| node.peer()).collect();

    let mut sixth = node.http();
    sixth.send(&upgrade_request(node.addr(), ""));
    let reply = sixth.reply(Body::Expected);

    assert_eq!(reply.status, 503, "{reply:?}");
    let seconds = reply.header("retry-after").and_then(|value| value.parse::<u64>().ok());
    assert!(seconds.is_some_and(|seconds| 1 <= seconds), "{reply:?}");
    for peer in &mut peers {
        peer.fence();
    }
    peers.pop();
    wait_until("a place to be free", LIMIT, || {
        let mut http = node.http();
        http.try_send(&upgrade_request(node.addr(), ""));
        http.try_reply(Body::Absent).is_some_and(|reply| reply.status == 101)
    });
}

#[test]
fn pages_of_other_sites_may_not_connect_unless_they_are_allowed() {
    let node = Node::with_config("allowed_origins = [\"https://panel.example\"]\n");
    let port = node.addr().port();
    let (here, lan) = (format!("127.0.0.1:{port}"), format!("192.168.7.7:{port}"));

    for (host, origin, status) in [
        (&here, format!("http://{here}"), 101),
        (&lan, format!("http://{lan}"), 101),
        (&here, "https://panel.example".to_owned(), 101),
        (&lan, "https://panel.example".to_owned(), 101),
        // A page that this machine serves to its own browser.
        (&here, "http://localhost:3000".to_owned(), 101),
        (&lan, "http://localhost:3000".to_owned(), 403),
        (&lan, "http://192.168.7.7:1".to_owned(), 403),
        (&lan, "http://192.168.7.8".to_owned(), 403),
        (&here, "https://evil.example".to_owned(), 403),
        (&here, "https://panel.example.evil.example".to_owned(), 403),
        (&here, "http://panel.example".to_owned(), 403),
        (&here, "null".to_owned(), 403),
    ] {
        let mut http = node.http();
        let request = upgrade_request(node.addr(), &format!("Origin: {origin}\r\n"));
        http.send(&request.replace(&format!("Host: {here}"), &format!("Host: {host}")));
        let reply = http.reply(if status == 101 { Body::Absent } else { Body::Expected });
        assert_eq!(reply.status, status, "{origin} at {host} was answered {reply:?}");
    }
}

#[test]
fn a_name_that_somebody_else_points_at_the_relay_is_not_served() {
    let node = Node::start();
    let port = node.addr().port();

    for (host, served) in [
        (format!("127.0.0.1:{port}"), true),
        (format!("localhost:{port}"), true),
        (format!("relay.local:{port}"), true),
        (format!("[::1]:{port}"), true),
        (format!("rebound.example:{port}"), false),
        ("rebound.example".to_owned(), false),
    ] {
        let mut http = node.http();
        let request = upgrade_request(node.addr(), "");
        http.send(&request.replace(&format!("Host: {}", node.addr()), &format!("Host: {host}")));
        let reply = http.reply(if served { Body::Absent } else { Body::Expected });
        assert_eq!(reply.status == 101, served, "{host} was answered {reply:?}");
        assert!(served || [400, 403, 421].contains(&reply.status), "{host}: {reply:?}");
    }
}
