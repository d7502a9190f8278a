//! Why a request is not served: what the peer reads, under which status, and whether the
//! connection survives it.

use crate::{
    http::head::Method,
    wire::{codes::Code, request::Refusal},
};

/// Everything that can be wrong with a request before it reaches a topic.
///
/// `Display` is the `detail` that the peer reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    #[error("the connection does not begin with an HTTP request; TLS is not spoken on this port")]
    NotHttp,
    #[error("the request line is not a method, a target and a version with one space between them")]
    RequestLine,
    #[error("the HTTP version is not 1.0 or 1.1")]
    Version,
    #[error("a line ends in a line feed alone; lines end in a carriage return and a line feed")]
    BareLineFeed,
    #[error("there are more than {max} empty lines before the request")]
    EmptyLines { max: usize },
    #[error("a header field is folded over several lines; it must stand on one")]
    Folded,
    #[error("a header field has no colon, a space before it, or a character not allowed in names")]
    FieldName,
    #[error("the value of a header field has a control character")]
    FieldValue,
    #[error("the request target takes more than the {max} bytes that a whole head may")]
    TargetTooLong { max: usize },
    #[error("the head of the request takes more than {max} bytes")]
    HeadTooLarge { max: usize },
    #[error("the request has more than {max} header fields")]
    FieldsTooMany { max: usize },

    #[error("CONNECT is not offered; this is not a proxy")]
    Connect,
    #[error("the request target {reason}")]
    Target { reason: &'static str },
    #[error("Host is missing; a request of HTTP/1.1 has exactly one")]
    HostMissing,
    #[error("Host is not a host name or address with an optional port")]
    HostInvalid,
    #[error("Host differs from the host in the request target")]
    HostDiffers,
    #[error("{name} is there more than once")]
    FieldRepeated { name: &'static str },
    #[error("{name} is not UTF-8")]
    FieldNotUtf8 { name: &'static str },
    #[error("Expect asks for something other than 100-continue")]
    Expectation,

    #[error("Content-Length is not a number of bytes in decimal digits")]
    LengthInvalid,
    #[error("Content-Length is there more than once, with different values")]
    LengthsDiffer,
    #[error("both Content-Length and Transfer-Encoding are there; only one can be true")]
    LengthAndEncoding,
    #[error("Transfer-Encoding is something other than chunked")]
    EncodingUnknown,
    #[error("Transfer-Encoding is there in a request of HTTP/1.0, which does not know it")]
    EncodingTooNew,
    #[error("the body takes more than {max} bytes")]
    BodyTooLarge { max: usize },
    #[error("a chunk does not begin with its size in hexadecimal digits")]
    ChunkSize,
    #[error("a chunk does not end where its size says, or a line of it not in CR LF")]
    ChunkEnd,
    #[error("a chunk extension is malformed")]
    Extension,
    #[error("the chunk extensions of the body take more than {max} bytes")]
    ExtensionsTooLarge { max: usize },
    #[error("a trailer field is malformed")]
    Trailer,
    #[error("the trailer fields take more than {max} bytes")]
    TrailersTooLarge { max: usize },
    #[error("the request did not arrive in time")]
    TooSlow,

    #[error("the method is not one that this path takes")]
    Method { allowed: &'static [Method] },
    #[error("this path takes a WebSocket handshake: Connection: Upgrade, Upgrade: websocket")]
    UpgradeMissing,
    #[error("Sec-WebSocket-Version is not 13")]
    UpgradeVersion,
    #[error("a WebSocket handshake needs HTTP/1.1")]
    UpgradeTooOld,
    #[error("Sec-WebSocket-Key is missing, or not 16 bytes in Base64")]
    UpgradeKey,
    #[error("a WebSocket handshake has no body")]
    UpgradeBody,

    /// The request was understood, and is refused.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

/// Whether it is known where the next request on the connection begins.
enum Framing {
    Known,
    Doubtful,
}

impl HttpError {
    /// The status of the answer.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.verdict().0
    }

    /// The code of the answer.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.verdict().1
    }

    /// Whether the connection must be closed after the answer, because nobody knows any more where
    /// the next request begins. What is false here is an answer like any other: the body of the
    /// request, if it has one, is still read.
    #[must_use]
    pub const fn closes(&self) -> bool {
        match self.verdict().2 {
            Framing::Known => false,
            Framing::Doubtful => true,
        }
    }

    /// Every error once: its status, its code, and what is left of the connection.
    const fn verdict(&self) -> (u16, Code, Framing) {
        use Framing::{Doubtful, Known};
        match self {
            HttpError::Refused(refusal) => (refusal.code.http_status(), refusal.code, Known),
            HttpError::UpgradeTooOld | HttpError::UpgradeKey => (400, Code::BadRequest, Known),
            HttpError::Method { .. } => (405, Code::BadRequest, Known),
            HttpError::UpgradeMissing | HttpError::UpgradeVersion => (426, Code::BadRequest, Known),

            HttpError::ExtensionsTooLarge { .. } | HttpError::TrailersTooLarge { .. } => {
                (400, Code::TooLarge, Doubtful)
            }
            HttpError::BodyTooLarge { .. } => (413, Code::TooLarge, Doubtful),
            HttpError::TargetTooLong { .. } => (414, Code::TooLarge, Doubtful),
            HttpError::HeadTooLarge { .. } | HttpError::FieldsTooMany { .. } => {
                (431, Code::TooLarge, Doubtful)
            }
            HttpError::TooSlow => (408, Code::BadRequest, Doubtful),
            HttpError::Expectation => (417, Code::BadRequest, Doubtful),
            HttpError::EncodingUnknown => (501, Code::BadRequest, Doubtful),
            HttpError::Version => (505, Code::BadRequest, Doubtful),
            HttpError::NotHttp
            | HttpError::RequestLine
            | HttpError::BareLineFeed
            | HttpError::EmptyLines { .. }
            | HttpError::Folded
            | HttpError::FieldName
            | HttpError::FieldValue
            | HttpError::Connect
            | HttpError::Target { .. }
            | HttpError::HostMissing
            | HttpError::HostInvalid
            | HttpError::HostDiffers
            | HttpError::FieldRepeated { .. }
            | HttpError::FieldNotUtf8 { .. }
            | HttpError::LengthInvalid
            | HttpError::LengthsDiffer
            | HttpError::LengthAndEncoding
            | HttpError::EncodingTooNew
            | HttpError::ChunkSize
            | HttpError::ChunkEnd
            | HttpError::Extension
            | HttpError::Trailer
            | HttpError::UpgradeBody => (400, Code::BadRequest, Doubtful),
        }
    }

    /// The same in the words of the protocol.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        if let HttpError::Refused(refusal) = self {
            return refusal.clone();
        }
        let mut refusal = Refusal::new(self.code(), self.to_string());
        refusal.field = self.field();
        refusal
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most errors are about no one field")]
    const fn field(&self) -> Option<&'static str> {
        Some(match self {
            HttpError::HostMissing | HttpError::HostInvalid | HttpError::HostDiffers => "Host",
            HttpError::FieldRepeated { name } | HttpError::FieldNotUtf8 { name } => name,
            HttpError::Expectation => "Expect",
            HttpError::LengthInvalid | HttpError::LengthsDiffer | HttpError::LengthAndEncoding => {
                "Content-Length"
            }
            HttpError::EncodingUnknown | HttpError::EncodingTooNew => "Transfer-Encoding",
            HttpError::UpgradeMissing => "Upgrade",
            HttpError::UpgradeVersion => "Sec-WebSocket-Version",
            HttpError::UpgradeKey => "Sec-WebSocket-Key",
            _ => return None,
        })
    }
}

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> Self {
        HttpError::Refused(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_own_code_and_field_and_the_connection() {
        let error = HttpError::from(Refusal::field("limit", "limit is 0"));
        assert_eq!((error.status(), error.code(), error.closes()), (400, Code::BadRequest, false));
        assert_eq!(error.refusal(), Refusal::field("limit", "limit is 0"));
    }

    #[test]
    fn what_leaves_the_framing_in_doubt_closes_the_connection() {
        for (error, status, code) in [
            (HttpError::LengthAndEncoding, 400, Code::BadRequest),
            (HttpError::BodyTooLarge { max: 1 }, 413, Code::TooLarge),
            (HttpError::TargetTooLong { max: 1 }, 414, Code::TooLarge),
            (HttpError::HeadTooLarge { max: 1 }, 431, Code::TooLarge),
            (HttpError::EncodingUnknown, 501, Code::BadRequest),
            (HttpError::Version, 505, Code::BadRequest),
        ] {
            assert!(error.closes(), "{error:?}");
            assert_eq!((error.status(), error.code()), (status, code), "{error:?}");
        }
        assert!(!HttpError::Method { allowed: &[] }.closes());
    }

    #[test]
    fn an_error_about_a_header_field_names_it() {
        let refusal = HttpError::FieldRepeated { name: "Origin" }.refusal();
        assert_eq!(refusal.field, Some("Origin"));
        assert!(refusal.message.contains("Origin"));
        assert_eq!(HttpError::Folded.refusal().field, None);
    }
}
