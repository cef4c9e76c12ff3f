//! Where a text may be cut: chunks and cuts end at the coarsest border that is near enough, and
//! always between characters.

use std::ops::Range;

use longstrap_model::Encoded;

/// The last border in `floor..=limit` (byte positions), the coarsest kind that has one: before a
/// blank line, before a line, after a sentence, before a word, between characters. A position
/// equal to the text's length is the best border of all.
pub(crate) fn border(text: &str, floor: usize, limit: usize) -> usize {
    if limit >= text.len() {
        return text.len();
    }
    let limit = text.floor_char_boundary(limit);
    let floor = text.ceil_char_boundary(floor.min(limit));
    let window = &text[floor..limit];
    let after = |pattern: &str| window.rfind(pattern).map(|at| floor + at);
    let sentence = || {
        window
            .char_indices()
            .rev()
            .find(|&(at, c)| {
                matches!(c, '.' | '!' | '?' | '。' | '！' | '？')
                    && text[floor + at + c.len_utf8()..].starts_with(char::is_whitespace)
            })
            .map(|(at, c)| floor + at + c.len_utf8())
    };
    let word = || window.rfind(char::is_whitespace).map(|at| floor + at);
    [after("\n\n"), after("\n"), sentence(), word()].into_iter().flatten().find(|&at| at > 0).unwrap_or(limit)
}

/// Cuts a text into chunks of at most `max_tokens`, together the whole text. `encoded` is the
/// text's encoding; a chunk encoded alone can have a token more at its borders.
pub(crate) fn chunks(text: &str, encoded: &Encoded, max_tokens: usize) -> Vec<Range<usize>> {
    let max_tokens = max_tokens.max(1);
    let mut chunks = Vec::new();
    let (mut from_byte, mut from_token) = (0, 0);
    while from_byte < text.len() {
        let end_token = from_token + max_tokens;
        let limit = encoded.offsets.get(end_token).map_or(text.len(), |range| range.start);
        let half = encoded.offsets.get(from_token + max_tokens / 2).map_or(0, |range| range.start);
        let mut end = border(text, half.max(from_byte + 1), limit);
        if end <= from_byte {
            end = text.ceil_char_boundary(from_byte + 1);
        }
        if !text[from_byte..end].trim().is_empty() {
            chunks.push(from_byte..end);
        } else if let Some(last) = chunks.last_mut() {
            last.end = end;
        }
        from_byte = end;
        from_token = encoded.offsets.partition_point(|range| range.start < end);
    }
    chunks
}

/// Sentences of a text as byte ranges: they end at a full stop before white space, at the end of a
/// paragraph, heading, list item or table row; a line break inside a paragraph ends nothing.
pub(crate) fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (at, c) in text.char_indices() {
        let next = at + c.len_utf8();
        let ends = match c {
            '\n' => line_ends(&text[start..at], &text[next..]),
            // "1." is the number of a list item, not a sentence.
            '.' if text[start..at].trim().bytes().all(|byte| byte.is_ascii_digit()) => false,
            '.' | '!' | '?' => text[next..].starts_with(char::is_whitespace),
            '。' | '！' | '？' => true,
            _ => false,
        };
        if ends {
            push(text, start..next, &mut sentences);
            start = next;
        }
    }
    push(text, start..text.len(), &mut sentences);
    sentences
}

/// Whether a line break ends what was said, by the text since the last end and the text after it.
fn line_ends(before: &str, after: &str) -> bool {
    let before = before.trim_start();
    let after = after.trim_start_matches([' ', '\t', '\r']);
    let own_line = |line: &str| line.starts_with(['#', '|', '`', '>']);
    own_line(before)
        || own_line(after)
        || after.is_empty()
        || after.starts_with(['\n', '-', '*', '+'])
        || after.starts_with(|c: char| c.is_ascii_digit())
}

fn push(text: &str, range: Range<usize>, sentences: &mut Vec<Range<usize>>) {
    let piece = &text[range.clone()];
    let start = range.start + piece.len() - piece.trim_start().len();
    let piece = piece.trim();
    if !piece.is_empty() {
        sentences.push(start..start + piece.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token per byte.
    fn bytes(text: &str) -> Encoded {
        let offsets = (0..text.len()).map(|i| i..i + 1).collect();
        Encoded { ids: vec![0; text.len()], offsets }
    }

    #[test]
    fn borders_from_coarse_to_fine() {
        let text = "One two. Three\nfour five\n\nsix seven eight";
        for (floor, limit, want) in [
            (0, 30, "One two. Three\nfour five"),
            (0, 20, "One two. Three"),
            (0, 12, "One two."),
            (0, 6, "One"),
            (1, 2, "On"),
            (26, 36, "One two. Three\nfour five\n\nsix seven"),
            (0, 99, text),
        ] {
            assert_eq!(&text[..border(text, floor, limit)], want, "{floor}..{limit}");
        }
        assert_eq!(border("ääää", 0, 3), 2);
    }

    #[test]
    fn chunks_cover_the_text_within_the_limit() {
        let text = "Alpha beta.\n\nGamma delta epsilon zeta eta theta iota.\n\nKappa.   \n\n\n";
        for max in [1, 7, 16, 30, 200] {
            let chunks = chunks(text, &bytes(text), max);
            assert!(
                chunks.iter().all(|c| c.len() <= max || text[c.clone()].trim_end().len() <= max),
                "{max}"
            );
            assert_eq!(
                chunks.iter().map(|c| &text[c.clone()]).collect::<String>().trim_end(),
                text.trim_end()
            );
        }
        assert!(chunks("  \n", &bytes("  \n"), 5).is_empty());
    }

    #[test]
    fn sentences_end_where_a_reader_would_say_so() {
        let text =
            "  # Head\nOne line\nand its rest. Two v1.2 is out!\n1. First\n2. Second\n| a | b |\nThree";
        let all: Vec<&str> = sentences(text).into_iter().map(|r| &text[r]).collect();
        let want = [
            "# Head",
            "One line\nand its rest.",
            "Two v1.2 is out!",
            "1. First",
            "2. Second",
            "| a | b |",
            "Three",
        ];
        assert_eq!(all, want);
    }
}
