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
/// paragraph, heading, list item or table row; a line break inside a paragraph ends nothing, nor
/// does the mark of a list item ("1.", "-", "b)"), which belongs to what follows.
pub(crate) fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (at, c) in text.char_indices() {
        let next = at + c.len_utf8();
        let ends = match c {
            '\n' => line_ends(&text[start..at], &text[next..]),
            '.' if text[start..at].trim().is_empty() || list_mark(&text[start..at]) => false,
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
    if is_mark(before) {
        return false;
    }
    let before = before.trim_start();
    let after = after.trim_start_matches([' ', '\t', '\r']);
    let own_line = |line: &str| line.starts_with(['#', '|', '`', '>']);
    own_line(before)
        || own_line(after)
        || after.is_empty()
        || after.starts_with(['\n', '-', '*', '+'])
        || after.starts_with(|c: char| c.is_ascii_digit())
}

/// Whether the text ends in the mark of a list item: a short number or a letter ("1.", "(b."), at
/// its start also "2.3.". Where that ended a sentence after all ("in step 3."), the next one is
/// taken along: no harm is done.
fn list_mark(text: &str) -> bool {
    /// Longer ones are years, amounts, names.
    const LONGEST: usize = 3;
    let text = text.trim_start();
    let last = text.rsplit(char::is_whitespace).next().unwrap_or_default();
    let mark = last.trim_start_matches(['(', '[', '*', '_']).trim_end_matches('.');
    let number = |part: &str| (1..=LONGEST).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    let letter = mark.len() == 1 && mark.as_bytes()[0].is_ascii_lowercase();
    number(mark) || letter || (last.len() == text.len() && mark.split('.').all(number))
}

/// Whether the text is the mark of a list item and nothing else.
fn is_mark(text: &str) -> bool {
    let text = text.trim();
    let closed = text.strip_suffix(['.', ')']);
    matches!(text, "-" | "*" | "+")
        || closed.is_some_and(|mark| !mark.contains(char::is_whitespace) && list_mark(mark))
}

fn push(text: &str, range: Range<usize>, sentences: &mut Vec<Range<usize>>) {
    let piece = &text[range.clone()];
    let start = range.start + piece.len() - piece.trim_start().len();
    let piece = piece.trim();
    // A mark with nothing after it says nothing.
    if !piece.is_empty() && !is_mark(piece) {
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

    /// A quote must not end in "1.": what a list's number begins belongs to it.
    #[test]
    fn a_list_number_ends_no_sentence() {
        for (text, want) in [
            ("Do so: 1. Wash it. 2. Dry it.", vec!["Do so: 1. Wash it.", "2. Dry it."]),
            ("First (a. this). Then (b. that).", vec!["First (a. this).", "Then (b. that)."]),
            ("2.3. Build\nit. Done.", vec!["2.3. Build\nit.", "Done."]),
            ("It needs 1.70. It began in 2019. Good.", vec!["It needs 1.70.", "It began in 2019.", "Good."]),
            ("1.\n\n   Wash it.\n2)\nDry it.", vec!["1.\n\n   Wash it.", "2)\nDry it."]),
            ("- \nOne\n- Two\n-", vec!["- \nOne", "- Two"]),
            ("The end:\n\n1.", vec!["The end:"]),
            ("See step 3.\n\nNext. \n\n4.\n", vec!["See step 3.", "Next."]),
            ("Wait... Then go . now.", vec!["Wait...", "Then go .", "now."]),
        ] {
            let all: Vec<&str> = sentences(text).into_iter().map(|r| &text[r]).collect();
            assert_eq!(all, want, "{text:?}");
        }
    }
}
