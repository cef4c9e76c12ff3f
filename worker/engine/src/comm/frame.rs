//! A frame on the wire: header, payload, checksum of the payload.
//!
//! Invariant: nothing of a frame is taken for data before its header was found to be the expected
//! one, whole and of this gang.

use std::io::{self, BufWriter, Read, Write};

use super::Tag;
use super::link::Side;

/// First bytes of a frame: another protocol on the port is told from a broken frame.
const MAGIC: u32 = u32::from_le_bytes(*b"LSF1");
/// Bytes of a header.
const HEADER: usize = 44;
/// Bytes of a frame beside its payload.
pub(crate) const FRAME_OVERHEAD: u64 = HEADER as u64 + 4;
/// Bytes that are written at once when the rows of a view lie apart.
pub(super) const BUFFER: usize = 128 << 10;

/// What a frame says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) generation: u64,
    pub(crate) sender: u32,
    pub(crate) tag: Tag,
    pub(crate) length: u64,
}

impl std::fmt::Display for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let length = usize::try_from(self.length).unwrap_or(usize::MAX);
        write!(f, "generation {} {}", self.generation, super::describe(self.tag, length))
    }
}

/// What is wrong with what was read.
#[derive(Debug)]
pub(crate) enum Broken {
    Io(io::Error),
    /// In words.
    Damaged(String),
    /// A sound header that is another.
    Other(Header),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Header {
    fn encode(self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..12].copy_from_slice(&self.generation.to_le_bytes());
        out[12..16].copy_from_slice(&self.sender.to_le_bytes());
        for (i, field) in [self.tag.step, self.tag.layer, self.tag.hop].into_iter().enumerate() {
            out[16 + 4 * i..20 + 4 * i].copy_from_slice(&field.to_le_bytes());
        }
        out[28..36].copy_from_slice(&self.length.to_le_bytes());
        // 36..40 is reserved and zero.
        let sum = crc32fast::hash(&out[..40]);
        out[40..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Self, Broken> {
        let u32_at = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        if u32_at(0) != MAGIC {
            return Err(Broken::Damaged(format!("frame starts with {:02x?}", &bytes[..4])));
        }
        if u32_at(40) != crc32fast::hash(&bytes[..40]) {
            return Err(Broken::Damaged("checksum of a frame's header differs".to_owned()));
        }
        let tag = Tag { step: u32_at(16), layer: u32_at(20), hop: u32_at(24) };
        Ok(Self { generation: u64_at(4), sender: u32_at(12), tag, length: u64_at(28) })
    }
}

/// Writes one frame.
pub(crate) fn write(to: impl Write, header: Header, side: &Side<'_>) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(BUFFER, to);
    to.write_all(&header.encode())?;
    let mut sum = crc32fast::Hasher::new();
    for (part, r) in side.runs() {
        for bytes in part.row(r).chunks(BUFFER) {
            sum.update(bytes);
            to.write_all(bytes)?;
        }
    }
    to.write_all(&sum.finalize().to_le_bytes())?;
    to.flush()
}

/// Reads the frame that `expected` describes into `side`.
pub(crate) fn read(from: impl Read, expected: Header, side: &Side<'_>) -> Result<(), Broken> {
    let mut from = io::BufReader::with_capacity(BUFFER, from);
    let mut bytes = [0; HEADER];
    from.read_exact(&mut bytes)?;
    let header = Header::decode(&bytes)?;
    if header != expected {
        return Err(Broken::Other(header));
    }
    let mut sum = crc32fast::Hasher::new();
    for (part, r) in side.runs() {
        for bytes in part.row_mut(r).chunks_mut(BUFFER) {
            from.read_exact(bytes)?;
            sum.update(bytes);
        }
    }
    let mut trailer = [0; 4];
    from.read_exact(&mut trailer)?;
    if u32::from_le_bytes(trailer) == sum.finalize() {
        Ok(())
    } else {
        Err(Broken::Damaged(format!("checksum of the payload of {header} differs")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Mat;

    const HEAD: Header =
        Header { generation: 7, sender: 1, tag: Tag { step: 3, layer: 12, hop: 1 }, length: 300_000 };

    fn frame() -> Vec<u8> {
        let mut data: Vec<u8> = (0..300_000).map(|i| (i % 251) as u8).collect();
        let side = Side { peer: 0, parts: vec![Mat::from_slice(&mut data, 3, 100_000)] };
        let mut out = Vec::new();
        write(&mut out, HEAD, &side).unwrap();
        out
    }

    fn receive(bytes: &[u8], expected: Header) -> Result<Vec<u8>, Broken> {
        let mut data = vec![0; 300_000];
        read(bytes, expected, &Side { peer: 1, parts: vec![Mat::from_slice(&mut data, 1, 300_000)] })?;
        Ok(data)
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let whole = frame();
        assert_eq!(receive(&whole, HEAD).unwrap()[299_999], (299_999 % 251) as u8);
        for at in (0..HEADER).chain([HEADER, 150_000, whole.len() - 5, whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            assert!(matches!(receive(&bytes, HEAD), Err(Broken::Damaged(_))), "byte {at}");
        }
        assert!(matches!(receive(&whole[..whole.len() - 1], HEAD), Err(Broken::Io(_))));
    }

    #[test]
    fn another_frame_is_named() {
        for expected in [
            Header { generation: 8, ..HEAD },
            Header { tag: Tag { hop: 2, ..HEAD.tag }, ..HEAD },
            Header { length: 299_999, ..HEAD },
            Header { sender: 2, ..HEAD },
        ] {
            match receive(&frame(), expected) {
                Err(Broken::Other(got)) => assert_eq!(got, HEAD),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(HEAD.to_string(), "generation 7 step 3 layer 12 hop 1 (300000 bytes)");
    }

    proptest::proptest! {
        /// Whatever comes is an error or the expected frame, never a panic or a frame accepted in part.
        #[test]
        fn any_bytes_are_survived(mut bytes: Vec<u8>, sound_start in 0usize..60) {
            let whole = frame();
            let keep = sound_start.min(whole.len());
            bytes.splice(0..0, whole[..keep].iter().copied());
            proptest::prop_assert!(receive(&bytes, HEAD).is_err());
        }
    }
}
