//! Cleaning of a text. The invariant: what is kept survives a round trip through the tokenizer,
//! and nothing else is changed (no Unicode normalisation: code and quotes stay what they were).

/// Removes the characters that the target tokenizer would drop silently.
#[derive(Debug, Clone)]
pub struct Scrubber {
    dropped: [bool; 256],
    any: bool,
}

impl Scrubber {
    /// A scrubber for a tokenizer that has no symbol for these bytes.
    pub fn new(dropped_bytes: &[u8]) -> Scrubber {
        let mut dropped = [false; 256];
        for &byte in dropped_bytes {
            dropped[usize::from(byte)] = true;
        }
        Scrubber { dropped, any: !dropped_bytes.is_empty() }
    }

    /// The text without the characters whose UTF-8 form holds a dropped byte.
    pub fn scrub(&self, text: String) -> String {
        let hit = |byte: u8| self.dropped[usize::from(byte)];
        if !self.any || !text.bytes().any(hit) {
            return text;
        }
        let mut buffer = [0u8; 4];
        text.chars().filter(|c| !c.encode_utf8(&mut buffer).bytes().any(hit)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_whole_characters_and_nothing_else() {
        let scrubber = Scrubber::new(&[0x04, 0x1d, 0xf1]);
        let composed = "e\u{301} é";
        assert_eq!(
            scrubber.scrub(format!("a\u{4}b\u{1d}c\u{40000}d\t\r\n{composed}")),
            format!("abcd\t\r\n{composed}")
        );
        assert_eq!(Scrubber::new(&[]).scrub("a\u{4}".into()), "a\u{4}");
    }
}
