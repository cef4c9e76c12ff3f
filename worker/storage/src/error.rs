//! One error type for everything that storage can answer.
//!
//! The kind says what the caller may do (wait, give up, ask a human); the message names the
//! object and what to do. No message holds a credential.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::client::HttpError;

/// Result of a storage operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The store does not answer, or says that it cannot now: wait and try again.
    Away,
    /// Credentials are missing, wrong or lack a right.
    Denied,
    /// The object does not exist.
    NotFound,
    /// The bucket or container does not exist.
    BucketNotFound,
    /// The store lacks something that the protocol needs.
    Unsupported,
    /// The disk or a quota is full.
    NoSpace,
    /// Data are not what their manifest says (length or digest).
    Torn,
    /// Another object of the API owns this storage.
    InUse,
    /// A published object exists already with other bytes.
    Conflict,
    /// Written by a newer version of this program.
    FormatTooNew,
    /// An object exists but cannot be understood.
    Malformed,
    /// The URI or an option is wrong.
    Invalid,
    /// Anything else.
    Other,
}

/// A failed storage operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    action: &'static str,
    object: String,
    message: String,
}

impl StdError for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.action, self.object, self.message)?;
        match self.advice() {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl Error {
    /// An error of our own: `action` completes "cannot …", `object` is a URI.
    pub(crate) fn new(
        kind: ErrorKind,
        action: &'static str,
        object: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, action, object: object.into(), message: message.into() }
    }

    /// What the failure means.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// URI of the object that it is about.
    pub fn object(&self) -> &str {
        &self.object
    }

    fn advice(&self) -> Option<&'static str> {
        Some(match self.kind {
            ErrorKind::Denied => {
                "check the credentials (credentialsSecretRef, the environment's variables or the \
                 file's permissions) and their right to read, write, list and delete there"
            }
            ErrorKind::BucketNotFound => "create the bucket or correct storage.uri",
            ErrorKind::NoSpace => "free some space or raise the quota; nothing committed is lost",
            ErrorKind::Unsupported => "use a store with conditional writes (If-None-Match: *), or update it",
            ErrorKind::Torn => {
                "the file was changed or cut after it was committed: delete its manifest and run \
                 again, or restore the file"
            }
            ErrorKind::InUse => {
                "use another storage.uri, delete the other object, or set storage.adopt: true to \
                 take it over"
            }
            ErrorKind::FormatTooNew => "run it with the version that wrote it, or a newer one",
            _ => return None,
        })
    }

    /// Translates an answer of the client library.
    pub(crate) fn from_store(
        action: &'static str,
        object: impl Into<String>,
        source: &object_store::Error,
    ) -> Self {
        Self::new(classify(source), action, object, describe(source))
    }

    /// Translates an error of the local file system on a file that is not in the store.
    pub(crate) fn from_io(action: &'static str, path: &std::path::Path, source: &io::Error) -> Self {
        let kind = classify_io(source).unwrap_or(match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Other,
        });
        Self::new(kind, action, path.display().to_string(), source.to_string())
    }
}

fn classify(error: &object_store::Error) -> ErrorKind {
    use object_store::Error as E;
    match error {
        E::NotFound { source, .. } => {
            let text = source.to_string();
            let bucket = ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"];
            match bucket.iter().any(|name| text.contains(name)) {
                true => ErrorKind::BucketNotFound,
                false => ErrorKind::NotFound,
            }
        }
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorKind::Denied,
        E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Unsupported,
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => ErrorKind::Invalid,
        E::Generic { source, .. } => classify_generic(source.as_ref()),
        _ => ErrorKind::Other,
    }
}

/// The client library keeps its HTTP status private, so the text is read; a test with a real
/// server notices when a new version words it differently.
fn classify_generic(error: &(dyn StdError + 'static)) -> ErrorKind {
    let text = error.to_string();
    // Without credentials the S3 client asks the instance metadata service, which does not
    // exist outside that cloud: that is no outage.
    if text.contains("169.254.169.254") || text.contains("metadata.google.internal") {
        return ErrorKind::Denied;
    }
    if let Some(status) = http_status(&text) {
        return match status {
            501 => ErrorKind::Unsupported,
            507 => ErrorKind::NoSpace,
            408 | 429 | 500..=599 => ErrorKind::Away,
            _ if text.contains("ExpiredToken") || text.contains("InvalidAccessKeyId") => ErrorKind::Denied,
            _ => ErrorKind::Other,
        };
    }
    if text.contains("Server returned error response") {
        return ErrorKind::Away;
    }
    let mut cause = Some(error);
    let mut http = false;
    while let Some(e) = cause {
        if let Some(kind) = e.downcast_ref::<io::Error>().and_then(classify_io) {
            return kind;
        }
        http |= e.downcast_ref::<HttpError>().is_some();
        cause = e.source();
    }
    if http { ErrorKind::Away } else { ErrorKind::Other }
}

fn http_status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("non-2xx status code: ")?;
    rest.get(..3)?.parse().ok()
}

fn classify_io(error: &io::Error) -> Option<ErrorKind> {
    use io::ErrorKind as K;
    match error.kind() {
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Some(ErrorKind::NoSpace),
        K::PermissionDenied | K::ReadOnlyFilesystem => Some(ErrorKind::Denied),
        K::TimedOut
        | K::StaleNetworkFileHandle
        | K::HostUnreachable
        | K::NetworkUnreachable
        | K::NetworkDown
        | K::ConnectionRefused
        | K::ConnectionReset
        | K::ConnectionAborted
        | K::NotConnected
        | K::BrokenPipe => Some(ErrorKind::Away),
        _ => None,
    }
}

/// The library's text with its causes, each once, on one line.
fn describe(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    const LONGEST: usize = 600;
    if line.len() > LONGEST {
        let end = line.floor_char_boundary(LONGEST);
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_errors_keep_their_meaning() {
        for (io, kind) in [
            (io::ErrorKind::StorageFull, ErrorKind::NoSpace),
            (io::ErrorKind::QuotaExceeded, ErrorKind::NoSpace),
            (io::ErrorKind::PermissionDenied, ErrorKind::Denied),
            (io::ErrorKind::ReadOnlyFilesystem, ErrorKind::Denied),
            (io::ErrorKind::TimedOut, ErrorKind::Away),
            (io::ErrorKind::InvalidData, ErrorKind::Other),
        ] {
            let error = object_store::Error::Generic {
                store: "LocalFileSystem",
                source: Box::new(io::Error::from(io)),
            };
            assert_eq!(classify(&error), kind, "{io:?}");
        }
    }

    #[test]
    fn a_message_names_object_and_advice() {
        let error = Error::new(ErrorKind::NoSpace, "write", "file:///data/x", "disk full");
        assert_eq!(
            error.to_string(),
            "cannot write file:///data/x: disk full; free some space or raise the quota; nothing \
             committed is lost"
        );
    }
}
