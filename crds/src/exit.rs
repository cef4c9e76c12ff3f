//! How a pod tells its end: exit code and termination message.
//!
//! Invariant: the codes are part of the podFailurePolicy of every Job and never change; a
//! termination message is at most 4 KiB, because the kubelet cuts it there.

use serde::{Deserialize, Serialize};

use crate::{
    reason::Reason,
    status::{CheckpointStatus, DatasetRef},
    task::PinnedData,
};

/// Exit codes of worker and agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// 0: this step's manifest is committed.
    Committed,
    /// 1: crash, hang, anything unexpected. Counts for backoffLimit.
    Failed,
    /// 10: can never work with this spec, data or model; the reason is in the termination message.
    Invalid,
    /// 11: told to stop; the state is saved, or there was nothing to save.
    Stopped,
    /// 12: something outside stayed away (endpoint, storage).
    Outage,
    /// 13: `backoffLimit` in-place failures without progress.
    Exhausted,
}

impl ExitCode {
    /// The process's exit status.
    pub const fn code(self) -> i32 {
        match self {
            Self::Committed => 0,
            Self::Failed => 1,
            Self::Invalid => 10,
            Self::Stopped => 11,
            Self::Outage => 12,
            Self::Exhausted => 13,
        }
    }

    /// What an exit status means; 143 is SIGTERM before the handler was there, all others are failures.
    pub const fn from_code(code: i32) -> Self {
        match code {
            0 => Self::Committed,
            10 => Self::Invalid,
            11 | 143 => Self::Stopped,
            12 => Self::Outage,
            13 => Self::Exhausted,
            _ => Self::Failed,
        }
    }
}

/// What a pod leaves in its termination file; rewritten after every commit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TerminationMessage {
    /// Why the pod ended, for exit codes 10 and 12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The same in words: what, where, what to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Gang generation (training).
    pub generation: u64,
    /// Shards or checkpoints that are committed in this step so far, by anyone.
    pub committed: u64,
    /// sha256 of run.json.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// The step's manifest is committed.
    pub complete: bool,
    /// The newest checkpoint that this pod saw committed (training).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointStatus>,
    /// The finished dataset (finalize).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetRef>,
    /// Data with digests (prepare).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PinnedData>,
    /// Bytes of one checkpoint (prepare of a run).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_bytes: Option<u64>,
    /// URI of the finished model (export).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl TerminationMessage {
    /// The longest message that the kubelet keeps.
    pub const MAX_BYTES: usize = 4096;

    /// JSON of at most [`Self::MAX_BYTES`]: the text is shortened first, then the data's list.
    pub fn to_json(&self) -> String {
        let json = |m: &Self| serde_json::to_string(m).unwrap_or_default();
        let full = json(self);
        if full.len() <= Self::MAX_BYTES {
            return full;
        }
        let mut short = self.clone();
        short.message.clear();
        if json(&short).len() > Self::MAX_BYTES {
            short.data.clear();
        }
        // Escapes can make a character up to six bytes long in JSON.
        let room = Self::MAX_BYTES.saturating_sub(json(&short).len() + 32) / 6;
        let cut = self
            .message
            .char_indices()
            .map(|(i, c)| i + c.len_utf8())
            .take_while(|end| *end <= room)
            .last()
            .unwrap_or(0);
        if cut > 0 {
            short.message = format!("{}…", &self.message[..cut]);
        }
        json(&short)
    }

    /// Reads what a pod left. Anything unreadable is taken as words of the container runtime.
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text)
            .unwrap_or_else(|_| Self { message: text.trim().to_owned(), ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_fits_the_kubelet_and_keeps_what_decides() {
        let message = TerminationMessage {
            reason: Some(Reason::InvalidData),
            message: "\u{1}\"ä".repeat(3000),
            committed: 7,
            checkpoint: Some(CheckpointStatus::new(&"s".repeat(63), 7, "u".repeat(640), 1)),
            data: (0..16)
                .map(|i| PinnedData {
                    name: format!("d{i}"),
                    uri: "s3://b/".to_owned() + &"x".repeat(900),
                    digest: Some("sha256:".to_owned() + &"0".repeat(64)),
                })
                .collect(),
            ..TerminationMessage::default()
        };
        let json = message.to_json();
        assert!(json.len() <= TerminationMessage::MAX_BYTES, "{}", json.len());
        let back = TerminationMessage::parse(&json);
        assert_eq!((back.reason, back.committed), (Some(Reason::InvalidData), 7));
        assert!(back.message.starts_with("\u{1}\"ä"));
    }

    #[test]
    fn foreign_text_and_newer_fields_are_read() {
        assert_eq!(TerminationMessage::parse("OOMKilled\n").message, "OOMKilled");
        assert_eq!(TerminationMessage::parse(r#"{"committed":3,"new":1}"#).committed, 3);
        // A newer worker's reason is not known here: the text is kept.
        assert!(TerminationMessage::parse(r#"{"reason":"New"}"#).message.contains("New"));
    }

    #[test]
    fn codes_round_trip() {
        use ExitCode::*;
        for code in [Committed, Failed, Invalid, Stopped, Outage, Exhausted] {
            assert_eq!(ExitCode::from_code(code.code()), code);
        }
        assert_eq!(ExitCode::from_code(143), Stopped);
        assert_eq!(ExitCode::from_code(137), Failed);
    }
}
