//! The text form of index sets in a Job's status and success policy: `1,3-5,7`.

/// Increasing indexes as text; three or more consecutive ones as `first-last`.
pub(crate) fn format_indexes(indexes: &[usize]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut at = 0;
    while at < indexes.len() {
        let first = indexes[at];
        let run = indexes[at..].iter().enumerate().take_while(|(i, index)| **index == first + i).count();
        let last = first + run - 1;
        match run {
            1 => parts.push(first.to_string()),
            2 => parts.extend([first.to_string(), last.to_string()]),
            _ => parts.push(format!("{first}-{last}")),
        }
        at += run;
    }
    parts.join(",")
}

/// Whether `index` is in the set; a part that is not a number or a range holds nothing.
pub(crate) fn contains(set: &str, index: usize) -> bool {
    set.split(',').any(|part| match part.split_once('-') {
        Some((first, last)) => {
            matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&index))
        }
        None => part.parse() == Ok(index),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_and_read_alike() {
        for (indexes, text) in
            [(vec![], ""), (vec![2], "2"), (vec![0, 1], "0,1"), (vec![1, 3, 4, 5, 7], "1,3-5,7")]
        {
            assert_eq!(format_indexes(&indexes), text);
            assert!((0..10).all(|index| contains(text, index) == indexes.contains(&index)), "{text}");
        }
    }
}
