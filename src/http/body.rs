//! The body of a request, taken out of the bytes as they come, with every length bounded.

use crate::http::{
    error::HttpError,
    head::{BodyLength, is_token},
};

/// Most bytes of chunk extensions in one body. Nobody reads them, so they only need to be bounded.
pub const EXTENSIONS_BYTES_MAX: usize = 4 * 1024;
/// Most bytes of trailer fields after a body. Nobody reads them either.
pub const TRAILERS_BYTES_MAX: usize = 4 * 1024;
/// Most hexadecimal digits of a chunk's size: what 64 bits hold.
const SIZE_DIGITS_MAX: u8 = 16;

/// Takes one body out of a stream of bytes.
///
/// Invariants:
///
/// 1. What it has appended never exceeds `bytes_max`; a chunk is refused by its declared size.
/// 2. It takes no byte after the last one of the body: that is where the next request begins.
#[derive(Debug)]
pub struct BodyReader {
    state: State,
    bytes_max: usize,
    /// Bytes that chunks have declared so far.
    declared: u64,
    extension_bytes: usize,
    trailer_bytes: usize,
}

/// What comes next.
///
/// ```text
///   Size -> Blank -> Extension -> SizeFeed -> Data -> DataReturn -> DataFeed -> Size
///                                     | size 0
///                                     v
///                                 TrailerStart -> Trailer -> TrailerFeed -> TrailerStart
///                                     | CR
///                                     v
///                                  EndFeed -> Done
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes, and nothing after them.
    Plain {
        left: u64,
    },
    /// A digit of a chunk's size, or what ends it.
    Size {
        size: u64,
        digits: u8,
    },
    /// Space between a chunk's size and the `;` of its extension.
    Blank {
        size: u64,
    },
    /// Inside an extension, or its CR.
    Extension {
        size: u64,
    },
    /// The LF after a chunk's size.
    SizeFeed {
        size: u64,
    },
    /// So many bytes of a chunk.
    Data {
        left: u64,
    },
    DataReturn,
    DataFeed,
    /// A trailer field, or the CR of the line that ends the body.
    TrailerStart,
    Trailer,
    TrailerFeed,
    EndFeed,
    Done,
}

impl BodyReader {
    /// A reader for a body of at most `bytes_max` bytes.
    ///
    /// # Errors
    ///
    /// [`HttpError::BodyTooLarge`]: the head has declared more.
    pub fn new(length: BodyLength, bytes_max: usize) -> Result<BodyReader, HttpError> {
        let state = match length {
            BodyLength::None | BodyLength::Known(0) => State::Done,
            BodyLength::Known(left) if (bytes_max as u64) < left => {
                return Err(HttpError::BodyTooLarge { max: bytes_max });
            }
            BodyLength::Known(left) => State::Plain { left },
            BodyLength::Chunked => State::Size { size: 0, digits: 0 },
        };
        Ok(BodyReader { state, bytes_max, declared: 0, extension_bytes: 0, trailer_bytes: 0 })
    }

    /// Whether the body is whole.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Appends to `out` what `input` holds of the body, and returns how many bytes of `input` that
    /// took. It takes all of them unless the body ends before.
    ///
    /// # Errors
    ///
    /// The body is malformed, or larger than allowed. The reader is of no use after it.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, HttpError> {
        let mut used = 0;
        while let Some(&byte) = input.get(used) {
            if let State::Plain { left } | State::Data { left } = self.state {
                let rest = &input[used..];
                let taken = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                out.extend_from_slice(&rest[..taken]);
                used += taken;
                self.state = after_data(self.state, left - taken as u64);
            } else if self.is_done() {
                break;
            } else {
                self.state = self.step(self.state, byte)?;
                used += 1;
            }
        }
        Ok(used)
    }

    /// The state after one byte of what stands around the data.
    fn step(&mut self, state: State, byte: u8) -> Result<State, HttpError> {
        Ok(match (state, byte) {
            (State::Size { digits: 1.., size }, b'\r') => {
                State::SizeFeed { size: self.declare(size)? }
            }
            (State::Size { digits: 1.., size }, b';') => self.extend(State::Extension { size })?,
            (State::Size { digits: 1.., size }, b' ' | b'\t') => {
                self.extend(State::Blank { size })?
            }
            (State::Size { size, digits }, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(HttpError::ChunkSize)?;
                if digits == SIZE_DIGITS_MAX {
                    return Err(HttpError::ChunkSize);
                }
                State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }

            (State::Blank { .. }, b' ' | b'\t') => self.extend(state)?,
            (State::Blank { size }, b';') => self.extend(State::Extension { size })?,
            (State::Blank { .. }, _) => return Err(HttpError::Extension),
            (State::Extension { size }, b'\r') => State::SizeFeed { size: self.declare(size)? },
            (State::Extension { .. }, byte) if may_stand_in_line(byte) => self.extend(state)?,
            (State::Extension { .. }, _) => return Err(HttpError::Extension),

            (State::SizeFeed { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeFeed { size: left }, b'\n') => State::Data { left },
            (State::DataReturn, b'\r') => State::DataFeed,
            (State::DataFeed, b'\n') => State::Size { size: 0, digits: 0 },
            (State::SizeFeed { .. } | State::DataReturn | State::DataFeed, _) => {
                return Err(HttpError::ChunkEnd);
            }

            (State::TrailerStart, b'\r') => State::EndFeed,
            (State::TrailerStart, byte) if is_token(byte) => self.trail(State::Trailer)?,
            (State::Trailer, b'\r') => self.trail(State::TrailerFeed)?,
            (State::Trailer, byte) if may_stand_in_line(byte) => self.trail(State::Trailer)?,
            (State::TrailerFeed, b'\n') => self.trail(State::TrailerStart)?,
            (State::EndFeed, b'\n') => State::Done,
            (State::TrailerStart | State::Trailer | State::TrailerFeed | State::EndFeed, _) => {
                return Err(HttpError::Trailer);
            }

            (State::Plain { .. } | State::Data { .. } | State::Done, _) => state,
        })
    }

    /// Accounts for a chunk of `size` bytes before the first of them is read.
    fn declare(&mut self, size: u64) -> Result<u64, HttpError> {
        self.declared = self.declared.saturating_add(size);
        if (self.bytes_max as u64) < self.declared {
            return Err(HttpError::BodyTooLarge { max: self.bytes_max });
        }
        Ok(size)
    }

    fn extend(&mut self, next: State) -> Result<State, HttpError> {
        self.extension_bytes += 1;
        if EXTENSIONS_BYTES_MAX < self.extension_bytes {
            return Err(HttpError::ExtensionsTooLarge { max: EXTENSIONS_BYTES_MAX });
        }
        Ok(next)
    }

    fn trail(&mut self, next: State) -> Result<State, HttpError> {
        self.trailer_bytes += 1;
        if TRAILERS_BYTES_MAX < self.trailer_bytes {
            return Err(HttpError::TrailersTooLarge { max: TRAILERS_BYTES_MAX });
        }
        Ok(next)
    }
}

fn after_data(state: State, left: u64) -> State {
    match (state, left) {
        (State::Plain { .. }, 0) => State::Done,
        (State::Plain { .. }, left) => State::Plain { left },
        (_, 0) => State::DataReturn,
        (_, left) => State::Data { left },
    }
}

/// Whether `byte` may stand in a line that nobody reads: no control character, no line end.
fn may_stand_in_line(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] =
        b"4;a=\"b;c\"\r\nWiki\r\n5 ; x\r\npedia\r\n00E\r\n in \r\n\r\nchunks\r\n\
                             0\r\nExpires: never\r\nA:\r\n\r\n";
    const DECODED: &[u8] = b"Wikipedia in \r\n\r\nchunks";

    /// Feeds `pieces` one after the other, and returns the body and what was not taken.
    fn read(
        length: BodyLength,
        bytes_max: usize,
        pieces: &[&[u8]],
    ) -> Result<(Vec<u8>, Vec<u8>, bool), HttpError> {
        let mut reader = BodyReader::new(length, bytes_max)?;
        let (mut out, mut rest) = (Vec::new(), Vec::new());
        for piece in pieces {
            let used = reader.feed(piece, &mut out)?;
            rest.extend_from_slice(&piece[used..]);
            assert!(used == piece.len() || reader.is_done(), "stopped before the end");
        }
        assert!(out.len() <= bytes_max);
        Ok((out, rest, reader.is_done()))
    }

    fn chunked(input: &[u8]) -> Result<(Vec<u8>, Vec<u8>, bool), HttpError> {
        read(BodyLength::Chunked, 1_000, &[input])
    }

    #[test]
    fn no_body_is_done_at_once_and_takes_nothing() {
        for length in [BodyLength::None, BodyLength::Known(0)] {
            let (out, rest, done) = read(length, 0, &[b"GET /"]).unwrap();
            assert_eq!((&out[..], &rest[..], done), (&b""[..], &b"GET /"[..], true));
        }
    }

    #[test]
    fn a_plain_body_ends_where_the_head_said() {
        for cut in 0..=7 {
            let (head, tail) = b"helloGE".split_at(cut);
            let (out, rest, done) = read(BodyLength::Known(5), 5, &[head, tail]).unwrap();
            assert_eq!((&out[..], &rest[..], done), (&b"hello"[..], &b"GE"[..], true), "{cut}");
        }
        let (_, _, done) = read(BodyLength::Known(5), 5, &[b"hell"]).unwrap();
        assert!(!done);
    }

    #[test]
    fn a_chunked_body_is_the_same_wherever_it_is_cut() {
        let stream = [CHUNKED, b"GET /"].concat();
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                let (out, rest, done) =
                    read(BodyLength::Chunked, DECODED.len(), &pieces).expect("valid");
                assert_eq!((&out[..], &rest[..], done), (DECODED, &b"GET /"[..], true));
            }
        }
    }

    #[test]
    fn a_chunked_body_survives_being_fed_byte_by_byte_and_ends_at_its_last_byte() {
        let mut reader = BodyReader::new(BodyLength::Chunked, 1_000).unwrap();
        let mut out = Vec::new();
        for (at, byte) in CHUNKED.iter().enumerate() {
            assert!(!reader.is_done(), "done before byte {at}");
            assert_eq!(reader.feed(&[*byte], &mut out), Ok(1));
        }
        assert!(reader.is_done());
        assert_eq!(out, DECODED);
    }

    #[test]
    fn the_size_limit_is_exact() {
        assert!(read(BodyLength::Known(10), 10, &[]).is_ok());
        let too_large = Err(HttpError::BodyTooLarge { max: 10 });
        assert_eq!(read(BodyLength::Known(11), 10, &[]), too_large);
        assert_eq!(read(BodyLength::Known(u64::MAX), 10, &[]), too_large);
        assert!(read(BodyLength::Chunked, 10, &[b"a\r\n"]).is_ok());
        assert_eq!(read(BodyLength::Chunked, 10, &[b"b\r\n"]), too_large);
        assert!(read(BodyLength::Chunked, 10, &[b"5\r\nhello\r\n5\r\nworld\r\n"]).is_ok());
        assert_eq!(read(BodyLength::Chunked, 10, &[b"5\r\nhello\r\n6\r\n"]), too_large);
        // Sizes that add up to a small number only where 64 bits overflow.
        let wraps = b"5\r\nhello\r\nffffffffffffffff\r\n";
        assert_eq!(read(BodyLength::Chunked, 10, &[wraps]), too_large);
    }

    #[test]
    fn a_limit_of_everything_does_not_overflow() {
        assert!(read(BodyLength::Known(u64::MAX - 1), usize::MAX - 1, &[]).is_ok());
        assert!(read(BodyLength::Known(u64::MAX), usize::MAX, &[]).is_ok());
        assert!(read(BodyLength::Chunked, usize::MAX, &[b"ffffffffffffffff\r\n"]).is_ok());
    }

    #[test]
    fn a_chunk_size_is_only_hexadecimal_digits() {
        for input in [
            &b"\r\n"[..],
            b";a\r\n",
            b" 5\r\n",
            b"+5\r\n",
            b"-1\r\n",
            b"0x5\r\n",
            b"5h\r\n",
            b"5\n",
            b"00000000000000005\r\n",
        ] {
            assert_eq!(chunked(input), Err(HttpError::ChunkSize), "{input:?}");
        }
        let (out, _, _) = chunked(b"000000000000000A\r\n0123456789\r\n").unwrap();
        assert_eq!(out, b"0123456789");
    }

    #[test]
    fn a_chunk_ends_where_its_size_says_in_cr_lf() {
        for input in [
            &b"5\r\r\n"[..],
            b"5\rhello",
            b"5\r\nhello!\r\n",
            b"5\r\nhello\n",
            b"5\r\nhello\r\r\n",
            b"5\r\nhello0\r\n\r\n",
        ] {
            assert_eq!(chunked(input), Err(HttpError::ChunkEnd), "{input:?}");
        }
    }

    #[test]
    fn an_extension_has_no_control_characters_and_its_bytes_are_bounded() {
        for input in [&b"5;a\n"[..], b"5 \r\n", b"5 a\r\n", b"5;a\0b\r\n", b"5;\x0b\r\n"] {
            assert_eq!(chunked(input), Err(HttpError::Extension), "{input:?}");
        }
        // The semicolon counts, and so do the extensions of all chunks together.
        let first = [b"1;", "x".repeat(EXTENSIONS_BYTES_MAX - 2).as_bytes(), b"\r\na\r\n"].concat();
        assert!(read(BodyLength::Chunked, 10, &[&first, b"1;\r\nb\r\n0\r\n\r\n"]).unwrap().2);
        let max = EXTENSIONS_BYTES_MAX;
        let over = read(BodyLength::Chunked, 10, &[&first, b"1;x\r\n"]);
        assert_eq!(over, Err(HttpError::ExtensionsTooLarge { max }));
        let blank = format!("1{}", " ".repeat(max + 1));
        assert_eq!(chunked(blank.as_bytes()), Err(HttpError::ExtensionsTooLarge { max }));
    }

    #[test]
    fn trailers_are_checked_bounded_and_dropped() {
        for input in [
            &b"0\r\n\n"[..],
            b"0\r\n A: b\r\n\r\n",
            b"0\r\n: b\r\n\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\nA: b\r\r\n",
            b"0\r\nA: \0\r\n\r\n",
            b"0\r\n\r\r",
        ] {
            assert_eq!(chunked(input), Err(HttpError::Trailer), "{input:?}");
        }
        let trailer = |bytes: usize| format!("0\r\nA:{}\r\n\r\n", "x".repeat(bytes - 4));
        let (out, _, done) = chunked(trailer(TRAILERS_BYTES_MAX).as_bytes()).unwrap();
        assert!(out.is_empty() && done);
        let over = chunked(trailer(TRAILERS_BYTES_MAX + 1).as_bytes());
        assert_eq!(over, Err(HttpError::TrailersTooLarge { max: TRAILERS_BYTES_MAX }));
    }
}
