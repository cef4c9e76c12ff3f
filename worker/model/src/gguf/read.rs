//! A bounds-checked cursor over GGUF's little-endian header.

use super::Meta;

/// Reads from the front of a byte slice; running off its end is an error, never a panic.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Read<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.bytes.len());
        let Some(end) = end else {
            return Err(format!("ends inside its header (at byte {}): the file is truncated", self.at));
        };
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn size(&mut self) -> Read<usize> {
        let n = self.u64()?;
        usize::try_from(n).map_err(|_| format!("has a length of {n}"))
    }

    pub(super) fn text(&mut self) -> Read<String> {
        let n = self.size()?;
        let bytes = self.take(n)?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| format!("has a string that is not UTF-8 before byte {}", self.at))
    }

    pub(super) fn meta(&mut self) -> Read<Meta> {
        let kind = self.u32()?;
        if kind == ARRAY { self.meta_array() } else { self.scalar(kind) }
    }

    fn scalar(&mut self, kind: u32) -> Read<Meta> {
        Ok(match kind {
            0 => Meta::Unsigned(self.array::<1>()?[0].into()),
            1 => Meta::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Meta::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Meta::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Meta::Unsigned(self.u32()?.into()),
            5 => Meta::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Meta::Float(f32::from_le_bytes(self.array()?)),
            7 => Meta::Bool(self.array::<1>()?[0] != 0),
            8 => Meta::Text(self.text()?),
            10 => Meta::Unsigned(self.u64()?),
            11 => Meta::Signed(i64::from_le_bytes(self.array()?)),
            12 => Meta::Double(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("has the unknown value type {other}")),
        })
    }

    fn meta_array(&mut self) -> Read<Meta> {
        let kind = self.u32()?;
        if kind == ARRAY {
            return Err("is an array of arrays".into());
        }
        let n = self.size()?;
        // Every element takes a byte at least: a wild length ends in `take`, not in memory.
        let mut texts = Vec::new();
        let mut numbers = Vec::new();
        for _ in 0..n {
            match self.scalar(kind)? {
                Meta::Text(t) => texts.push(t),
                Meta::Unsigned(u) => numbers.push(u as i64),
                Meta::Signed(i) => numbers.push(i),
                _ => {}
            }
        }
        Ok(match (texts.len(), numbers.len()) {
            (t, _) if t == n => Meta::Texts(texts),
            (_, k) if k == n => Meta::Numbers(numbers),
            _ => Meta::Other,
        })
    }
}

const ARRAY: u32 = 9;
