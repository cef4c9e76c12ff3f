//! A storage URI taken apart, and put together again for messages.
//!
//! Invariant: a location holds no secret; a URI that does is refused and not repeated.

use std::path::PathBuf;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use url::Url;

use crate::error::{Error, ErrorKind, Result};

/// A parsed storage URI.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    pub(crate) scheme: Scheme,
    pub(crate) url: Url,
    /// Inside the bucket or file system.
    pub(crate) prefix: Path,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    File,
    Memory,
    S3,
    Gcs,
    Azure,
}

impl Location {
    pub(crate) fn parse(uri: &str) -> Result<Self> {
        let invalid = |why: &str| Error::new(ErrorKind::Invalid, "use the storage URI", uri, why);
        let url = Url::parse(uri).map_err(|e| invalid(&e.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            // The URI itself may hold the secret: it is not repeated.
            return Err(Error::new(
                ErrorKind::Invalid,
                "use the storage URI",
                url.scheme().to_owned() + ":…",
                "it holds a user, password or query; put credentials into credentialsSecretRef \
                 and settings into options",
            ));
        }
        let scheme = match url.scheme() {
            "file" => Scheme::File,
            "memory" => Scheme::Memory,
            "s3" | "s3a" => Scheme::S3,
            "gs" => Scheme::Gcs,
            "az" | "abfs" | "abfss" => Scheme::Azure,
            other => {
                return Err(invalid(&format!("scheme {other} is not one of file, s3, gs, az")));
            }
        };
        let prefix = match scheme {
            Scheme::File => {
                let path = url
                    .to_file_path()
                    .ok()
                    .filter(|_| uri.starts_with("file:/"))
                    .ok_or_else(|| invalid("a local folder is written file:///absolute/path"))?;
                Path::from_absolute_path(path).map_err(|e| invalid(&e.to_string()))?
            }
            Scheme::Memory => Path::from_url_path(url.path()).map_err(|e| invalid(&e.to_string()))?,
            _ if url.host_str().is_none_or(str::is_empty) => {
                return Err(invalid("the bucket is missing"));
            }
            _ => Path::from_url_path(url.path()).map_err(|e| invalid(&e.to_string()))?,
        };
        Ok(Self { scheme, url, prefix })
    }

    /// URI of `path` inside the same bucket or file system.
    pub(crate) fn uri_of(&self, path: &Path) -> String {
        match self.scheme {
            Scheme::File => format!("file:///{path}"),
            Scheme::Memory => format!("memory:///{path}"),
            _ => {
                let host = self.url.host_str().unwrap_or_default();
                format!("{}://{host}/{path}", self.url.scheme())
            }
        }
    }

    pub(crate) fn local_path(&self, path: &Path) -> Option<PathBuf> {
        match self.scheme {
            Scheme::File => LocalFileSystem::new().path_to_filesystem(path).ok(),
            _ => None,
        }
    }
}

/// Whether two URIs name one place, or one a place within the other's. What options say (endpoint,
/// account) is not compared; a URI that no store opens names no place.
pub fn overlap(a: &str, b: &str) -> bool {
    let (Ok(a), Ok(b)) = (Location::parse(a), Location::parse(b)) else { return false };
    let one_store = a.scheme == b.scheme && a.url.host_str() == b.url.host_str();
    one_store && (a.prefix.prefix_matches(&b.prefix) || b.prefix.prefix_matches(&a.prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_it_cannot_read() {
        for (uri, why) in [
            ("file:name", "file:///absolute/path"),
            ("s3:///path", "bucket"),
            ("ftp://host/x", "scheme"),
            ("s3://user:pw@bucket/x", "credentialsSecretRef"),
            ("s3://bucket/x?X-Amz-Signature=secret", "credentialsSecretRef"),
            ("nonsense", "relative"),
        ] {
            let error = Location::parse(uri).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{uri}");
            let text = error.to_string();
            assert!(text.contains(why), "{text}");
            assert!(!text.contains("secret;") && !text.contains("Signature"), "{text}");
        }
    }

    #[test]
    fn places_overlap_when_one_lies_within_the_other() {
        for (a, b, wanted) in [
            ("s3://b/x", "s3://b/x/", true),
            ("s3://b/x", "s3a://b/x/y", true),
            ("s3://b/x", "s3://b", true),
            ("s3://b/x", "s3://b/%78/y", true),
            ("s3://b/x", "s3://b/xy", false),
            ("s3://b/x", "s3://c/x", false),
            ("s3://b/x", "gs://b/x", false),
            ("file:///a/b", "file:/a/./b/c", true),
            ("file:///a/b", "memory:///a/b", false),
            ("s3://b/x", "ftp://b/x", false),
        ] {
            assert_eq!((overlap(a, b), overlap(b, a)), (wanted, wanted), "{a} {b}");
        }
    }
}
