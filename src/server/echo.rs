//! What a relay that is built with `--cfg landline_echo` says: what it hears. `make conformance`
//! tests it so, because the suites for WebSocket servers expect an echo. Messages come and go the
//! way of requests and replies: reader, outbox, writer.
//!
//! # Not here
//!
//! A relay that is built otherwise: [`ECHO`] is `false` when it is compiled, and nothing is left.

use tungstenite::Message;

use crate::wire::frame;

/// Messages are answered with themselves, and `landline.v1` is not spoken.
pub(crate) const ECHO: bool = cfg!(landline_echo);

/// The first byte of a frame that is a whole binary message.
const WHOLE_BINARY: u8 = 0x82;

/// Appends `message`, a text or binary one, as the frame that answers it.
pub(crate) fn push(out: &mut Vec<u8>, message: &Message) {
    let at = out.len();
    match message {
        Message::Binary(data) => {
            frame::push_text(out, data);
            out[at] = WHOLE_BINARY;
        }
        Message::Text(text) => frame::push_text(out, text.as_bytes()),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
    }
}
