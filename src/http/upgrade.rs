//! Whether a request may become a WebSocket (RFC 6455, section 4.2).

use tungstenite::handshake::derive_accept_key;

use crate::http::{
    error::HttpError,
    field::Field,
    head::{BodyLength, Head, Method, Version},
};

/// The subprotocol of this relay.
pub const PROTOCOL: &str = "landline.v1";
/// The one version of the WebSocket protocol that is in use.
pub const WEBSOCKET_VERSION: &str = "13";

/// What the answer to a handshake says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The value of `Sec-WebSocket-Accept`.
    pub accept_key: String,
    /// The subprotocol, if the client offered it. A browser that offered only others will close
    /// the connection, which is right: it expects something that is not spoken here.
    pub protocol: Option<&'static str>,
}

/// Checks a handshake. Who may connect is another question: `origin::check`.
///
/// # Errors
///
/// The first rule of the handshake that the request breaks.
pub fn check(head: &Head) -> Result<Upgrade, HttpError> {
    if head.method != Method::Get {
        return Err(HttpError::Method { allowed: &[Method::Get] });
    }
    let websocket = |protocol: &str| protocol.eq_ignore_ascii_case("websocket");
    if !head.upgrades || !head.members(Field::Upgrade).any(websocket) {
        return Err(HttpError::UpgradeMissing);
    }
    if head.version != Version::Http11 {
        return Err(HttpError::UpgradeTooOld);
    }
    if head.body != BodyLength::None {
        return Err(HttpError::UpgradeBody);
    }
    if head.field(Field::WebSocketVersion) != Some(WEBSOCKET_VERSION) {
        return Err(HttpError::UpgradeVersion);
    }
    let key = head.field(Field::WebSocketKey).filter(|key| is_key(key));
    let key = key.ok_or(HttpError::UpgradeKey)?;
    let offered = head.members(Field::WebSocketProtocol).any(|protocol| protocol == PROTOCOL);
    let accept_key = derive_accept_key(key.as_bytes());
    Ok(Upgrade { accept_key, protocol: offered.then_some(PROTOCOL) })
}

/// Whether `key` is the Base64 form of 16 bytes: 22 digits, of which the last one carries four
/// unused bits that may be anything, and two signs of padding.
fn is_key(key: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.strip_suffix("==").is_some_and(|digits| digits.bytes().all(digit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::{Parsed, parse};

    const GOOD: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
                        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    #[track_caller]
    fn checked(text: &str) -> Result<Upgrade, HttpError> {
        match parse(text.as_bytes()).unwrap() {
            Parsed::Done { head, .. } => check(&head),
            Parsed::Partial => panic!("{text} is not whole"),
        }
    }

    #[test]
    fn the_example_of_the_rfc_is_answered_as_the_rfc_says() {
        let upgrade = checked(GOOD).unwrap();
        assert_eq!(upgrade.accept_key, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(upgrade.protocol, None);
    }

    #[test]
    fn the_subprotocol_is_echoed_exactly_if_it_was_offered() {
        for (offer, chosen) in [
            ("landline.v1", Some(PROTOCOL)),
            ("mqtt, landline.v1", Some(PROTOCOL)),
            ("mqtt\r\nSec-WebSocket-Protocol: landline.v1", Some(PROTOCOL)),
            ("mqtt", None),
            ("LANDLINE.V1", None),
            ("landline.v10", None),
        ] {
            let line = format!("Sec-WebSocket-Protocol: {offer}\r\n\r\n");
            let text = GOOD.replace("\r\n\r\n", &format!("\r\n{line}"));
            assert_eq!(checked(&text).unwrap().protocol, chosen, "{offer}");
        }
    }

    #[test]
    fn every_broken_rule_has_its_own_refusal() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        for (from, to, error) in [
            ("GET", "POST", HttpError::Method { allowed: &[Method::Get] }),
            ("Upgrade: websocket\r\n", "", HttpError::UpgradeMissing),
            ("websocket\r\n", "h2c\r\n", HttpError::UpgradeMissing),
            ("keep-alive, Upgrade", "keep-alive", HttpError::UpgradeMissing),
            ("HTTP/1.1", "HTTP/1.0", HttpError::UpgradeTooOld),
            ("Upgrade: w", "Content-Length: 1\r\nUpgrade: w", HttpError::UpgradeBody),
            ("Version: 13", "Version: 8", HttpError::UpgradeVersion),
            ("Version: 13", "Version: 13, 8", HttpError::UpgradeVersion),
            ("Sec-WebSocket-Version: 13\r\n", "", HttpError::UpgradeVersion),
            ("Sec-WebSocket-Key", "X-Key", HttpError::UpgradeKey),
            (key, "", HttpError::UpgradeKey),
            (key, "dGhlIHNhbXBsZSBub25jZQ", HttpError::UpgradeKey),
            (key, "dGhlIHNhbXBsZSBub25jZQA=", HttpError::UpgradeKey),
            (key, "dGhlIHNhbXBsZSBub25jZ-==", HttpError::UpgradeKey),
            (key, "dGhlIHNhbXBsZSBub25jZQ==AA==", HttpError::UpgradeKey),
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert_eq!(checked(&GOOD.replacen(from, to, 1)), Err(error), "{from} -> {to}");
        }
    }
}
