//! WebSocket frames as a client writes and reads them (RFC 6455, section 5), bent where a test
//! asks for it.

pub const FINAL: u8 = 0x80;
pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

/// A mask that is visible in a dump and changes every byte.
const MASK: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];

/// A whole, masked frame, as every client must send it.
#[must_use]
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    bent(FINAL | opcode, Mask::Present, payload)
}

/// Whether a frame is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    Present,
    Absent,
}

/// A frame whose first byte (final bit, reserved bits, opcode) and mask are the test's choice.
#[must_use]
pub fn bent(first: u8, mask: Mask, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, mask, payload.len() as u64);
    match mask {
        Mask::Present => {
            let masked = payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key);
            frame.extend(masked);
        }
        Mask::Absent => frame.extend_from_slice(payload),
    }
    frame
}

/// Only the header of a frame that claims `len` bytes of payload.
#[must_use]
pub fn header(first: u8, mask: Mask, len: u64) -> Vec<u8> {
    let bit = if mask == Mask::Present { 0x80 } else { 0 };
    let mut frame = vec![first];
    if len < 126 {
        frame.push(bit | len as u8);
    } else if let Ok(len) = u16::try_from(len) {
        frame.push(bit | 126);
        frame.extend_from_slice(&len.to_be_bytes());
    } else {
        frame.push(bit | 127);
        frame.extend_from_slice(&len.to_be_bytes());
    }
    if mask == Mask::Present {
        frame.extend_from_slice(&MASK);
    }
    frame
}

/// A frame from the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// Bytes from the relay that are not taken yet.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    taken: usize,
}

impl Inbox {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next frame, if it is complete.
    ///
    /// # Panics
    ///
    /// If the relay broke the protocol: servers neither mask, nor may this one fragment.
    #[track_caller]
    pub fn take(&mut self) -> Option<Frame> {
        let bytes = &self.bytes[self.taken..];
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        assert_eq!(first & 0xf0, FINAL, "the relay sent a frame that starts with {first:#x}");
        assert_eq!(second & 0x80, 0, "the relay masked a frame");
        let (start, len) = match second {
            126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
            127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize),
            len => (2, usize::from(len)),
        };
        let payload = bytes.get(start..start + len)?.to_vec();
        self.taken += start + len;
        Some(Frame { opcode: first & 0x0f, payload })
    }
}

#[test]
fn frames_survive_the_way_through_the_inbox_byte_by_byte() {
    let payloads = [0, 1, 125, 126, 127, 65_535, 65_536].map(|len| vec![b'x'; len]);
    let mut inbox = Inbox::default();
    let mut taken = Vec::new();

    for payload in &payloads {
        for byte in bent(FINAL | TEXT, Mask::Absent, payload) {
            inbox.push(&[byte]);
            taken.extend(inbox.take());
        }
    }

    assert_eq!(taken.len(), payloads.len());
    for (frame, payload) in taken.iter().zip(&payloads) {
        assert!(frame.opcode == TEXT && &frame.payload == payload, "{} bytes", payload.len());
    }
}

#[test]
fn a_masked_frame_is_the_example_of_the_standard_under_our_mask() {
    let frame = masked(TEXT, b"Hello");

    assert_eq!(frame[..6], [0x81, 0x85, 0x5a, 0xa5, 0x3c, 0xc3]);
    let plain: Vec<u8> = frame[6..].iter().zip(&MASK.repeat(2)).map(|(b, m)| b ^ m).collect();
    assert_eq!(plain, b"Hello");
}
