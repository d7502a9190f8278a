//! What the relay serves to browsers: the dashboard and the client that it is built on.
//!
//! # Threads
//!
//! The connection's reader.

use crate::http::response::{Exchange, Response};

const PAGE: &str = include_str!("../../web/index.html");
const STYLE: &str = include_str!("../../web/dashboard.css");
const SCRIPT: &str = include_str!("../../web/dashboard.js");
const MODULE: &str = include_str!("../../web/landline.js");
/// The dashboard takes nothing from elsewhere, runs nothing that stands in the page, and cannot be
/// framed. `connect-src` also covers the WebSocket of the same host.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                           connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
                           form-action 'none'; frame-ancestors 'none'";

/// Answers `/`.
pub(super) fn index(exchange: &Exchange<'_>, out: &mut Vec<u8>) -> u16 {
    Response::new(200)
        .header("Content-Security-Policy", PAGE_POLICY)
        .header("Referrer-Policy", "no-referrer")
        .body("text/html; charset=utf-8", PAGE.as_bytes())
        .write(out, exchange);
    200
}

/// Answers `/dashboard.css`.
pub(super) fn style(exchange: &Exchange<'_>, out: &mut Vec<u8>) -> u16 {
    asset("text/css; charset=utf-8", STYLE, exchange, out)
}

/// Answers `/dashboard.js`.
pub(super) fn script(exchange: &Exchange<'_>, out: &mut Vec<u8>) -> u16 {
    asset("text/javascript; charset=utf-8", SCRIPT, exchange, out)
}

/// Answers `/landline.js`.
pub(super) fn module(exchange: &Exchange<'_>, out: &mut Vec<u8>) -> u16 {
    asset("text/javascript; charset=utf-8", MODULE, exchange, out)
}

/// These change with the relay, and are small: asked for anew, they are never the wrong ones.
fn asset(content_type: &str, text: &str, exchange: &Exchange<'_>, out: &mut Vec<u8>) -> u16 {
    Response::new(200)
        .cache_control("no-cache")
        .header("Referrer-Policy", "no-referrer")
        .body(content_type, text.as_bytes())
        .write(out, exchange);
    200
}
