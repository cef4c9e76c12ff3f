//! The identity of one writer: a pod of an attempt.
//!
//! Working data carry it in their names and working manifests in a field, so that a writer
//! recognises its own commit and that dead writers' leftovers can be told from live ones'.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `{attempt}-{index}-{first 8 of the pod's UID}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttemptId {
    attempt: u32,
    index: u32,
    pod: String,
}

/// A text that is no attempt id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no attempt id: {{attempt}}-{{index}}-{{1 to 8 letters or digits of the pod UID}}")]
pub struct InvalidAttemptId(String);

impl AttemptId {
    /// Takes the first 8 letters and digits of `pod_uid`.
    ///
    /// # Errors
    /// When `pod_uid` holds none.
    pub fn new(attempt: u32, index: u32, pod_uid: &str) -> Result<Self, InvalidAttemptId> {
        let pod: String = pod_uid.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        match pod.is_empty() {
            true => Err(InvalidAttemptId(format!("{attempt}-{index}-{pod_uid}"))),
            false => Ok(Self { attempt, index, pod }),
        }
    }

    /// The object's attempt counter.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The pod's index in its Job.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether `self` must be dead, seen by `now`, which runs: an earlier attempt, or an
    /// earlier pod of the same index. (A zombie on a lost node may still write; it can commit
    /// nothing, so nothing that it loses matters.)
    pub fn is_dead_to(&self, now: &Self) -> bool {
        self.attempt < now.attempt
            || (self.attempt == now.attempt && self.index == now.index && self.pod != now.pod)
    }

    /// The attempt that wrote `key`, when one of its segments starts with an attempt id.
    pub fn of_key(key: &str) -> Option<Self> {
        key.split('/').find_map(|segment| segment.split(['.', '#']).next()?.parse().ok())
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.attempt, self.index, self.pod)
    }
}

impl FromStr for AttemptId {
    type Err = InvalidAttemptId;

    fn from_str(text: &str) -> Result<Self, InvalidAttemptId> {
        let parse = || {
            let mut parts = text.splitn(3, '-');
            let attempt = parts.next()?.parse().ok()?;
            let index = parts.next()?.parse().ok()?;
            let pod = parts.next()?;
            let id = Self::new(attempt, index, pod).ok()?;
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| InvalidAttemptId(text.to_owned()))
    }
}

impl TryFrom<String> for AttemptId {
    type Error = InvalidAttemptId;

    fn try_from(text: String) -> Result<Self, InvalidAttemptId> {
        text.parse()
    }
}

impl From<AttemptId> for String {
    fn from(id: AttemptId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> AttemptId {
        text.parse().unwrap()
    }

    #[test]
    fn is_read_from_names() {
        let uid = AttemptId::new(3, 0, "0f8fad5b-d9cb-469f-a165-70867728950e").unwrap();
        assert_eq!(uid.to_string(), "3-0-0f8fad5b");
        for (key, found) in [
            ("shards/data/3-0-0f8fad5b/x.parquet", true),
            ("shards/3-0-0f8fad5b.parquet", true),
            ("shards/3-0-0f8fad5b.parquet#1", true),
            ("dataset/part-00000.parquet", false),
            ("gang/3.json", false),
        ] {
            assert_eq!(AttemptId::of_key(key), found.then(|| uid.clone()), "{key}");
        }
        for bad in ["", "1-2", "a-0-b", "1-2-", "1-2-toolonguid", "01-2-x"] {
            assert!(bad.parse::<AttemptId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn death_is_an_older_attempt_or_an_older_pod_of_the_index() {
        let now = id("2-1-new");
        for (other, dead) in
            [("1-0-x", true), ("2-1-old", true), ("2-1-new", false), ("2-0-x", false), ("3-1-x", false)]
        {
            assert_eq!(id(other).is_dead_to(&now), dead, "{other}");
        }
    }
}
