//! `file:NAME` in manifests: a place below the output folder, made absolute before planning.

use std::path::{Component, Path, PathBuf};

use longstrap_crds::Object;
use url::Url;

/// Makes every relative `file:` URI of `object` absolute, below `root`.
///
/// # Errors
/// One line for each URI that leaves the folder, with its field.
pub(crate) fn resolve(object: &mut Object, root: &Path) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    let owner = format!("{} {}", object.kind(), object.name());
    object.visit_uris(&mut |field, uri| match absolute(uri, root) {
        Ok(Some(resolved)) => *uri = resolved,
        Ok(None) => {}
        Err(message) => errors.push(format!("{owner}: {field}: {uri}: {message}")),
    });
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// The folder or file of a `file:` URI; `None` for other stores.
pub(crate) fn local_path(uri: &str) -> Option<PathBuf> {
    Url::parse(uri).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
}

fn absolute(uri: &str, root: &Path) -> Result<Option<String>, String> {
    let Some(name) = uri.strip_prefix("file:").filter(|name| !name.starts_with('/')) else { return Ok(None) };
    let inside =
        Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if name.is_empty() || !inside {
        return Err(
            "names no place inside the output folder; give a path below it or file:///an/absolute/path"
                .into(),
        );
    }
    if Path::new(name).components().next() == Some(Component::Normal(".local".as_ref())) {
        return Err("lies in .local, which belongs to `longstrap local run`".into());
    }
    let url = Url::from_file_path(root.join(name)).map_err(|()| "cannot be made absolute".to_owned())?;
    Ok(Some(url.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_uris_lie_below_the_output_folder() {
        let root = Path::new("/data/my out");
        let resolved = |uri: &str| absolute(uri, root);
        assert_eq!(resolved("file:docs"), Ok(Some("file:///data/my%20out/docs".into())));
        assert_eq!(resolved("file:models/a"), Ok(Some("file:///data/my%20out/models/a".into())));
        assert_eq!(resolved("file:///elsewhere"), Ok(None));
        assert_eq!(resolved("s3://b/docs"), Ok(None));
        for refused in ["file:", "file:../x", "file:a/../../x", "file:.local/objects"] {
            assert!(resolved(refused).is_err(), "{refused}");
        }
        assert_eq!(local_path("file:///data/my%20out/docs"), Some("/data/my out/docs".into()));
        assert_eq!(local_path("s3://b/docs"), None);
    }
}
