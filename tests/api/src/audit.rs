//! The API server's audit log: what the operator asked for.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::roles::right;

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As in [`right`].
    pub right: String,
    /// Whether a role allowed it.
    pub allowed: bool,
    /// With its query.
    pub uri: String,
    /// When it was answered.
    pub time: Timestamp,
}

impl Entry {
    /// Changes something other than a Lease.
    pub fn is_write(&self) -> bool {
        let reads = ["get ", "list ", "watch "].iter().any(|verb| self.right.starts_with(verb));
        !reads && !self.right.ends_with(" leases.coordination.k8s.io") && !self.uri.contains("dryRun=")
    }

    /// Reads something, a Lease too.
    pub fn is_read(&self) -> bool {
        ["get ", "list ", "watch "].iter().any(|verb| self.right.starts_with(verb))
    }
}

/// All requests; a watch counts once, when it begins.
pub fn entries(log: &Path) -> impl Iterator<Item = Entry> {
    let file = File::open(log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
    BufReader::new(file).lines().map_while(Result::ok).filter_map(|line| {
        // The last line may be in the making.
        let entry: Value = serde_json::from_str(&line).ok()?;
        let word = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let verb = word("/verb");
        let wanted = if verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
        let denied = word("/annotations/authorization.k8s.io~1decision") != "allow";
        if word("/stage") != wanted && !denied {
            return None;
        }
        let resource = match word("/objectRef/subresource") {
            "" => word("/objectRef/resource").to_owned(),
            sub => format!("{}/{sub}", word("/objectRef/resource")),
        };
        Some(Entry {
            right: right(verb, word("/objectRef/apiGroup"), &resource),
            allowed: !denied,
            uri: word("/requestURI").to_owned(),
            time: word("/stageTimestamp").parse().ok()?,
        })
    })
}
