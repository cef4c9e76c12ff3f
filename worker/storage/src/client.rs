//! Opens the client of a URI and keeps its credentials fresh.
//!
//! Credentials come from the SDK's environment variables and from a folder of files named like
//! them (a mounted Secret). The folder is read again every minute, and at once when access is
//! denied; a secret never reaches a message or a log.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path as FsPath, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use crate::error::{Error, ErrorKind, Result};
use crate::location::{Location, Scheme};

const RELOAD_AFTER: Duration = Duration::from_secs(60);

/// Where credentials come from, besides the SDK's environment variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Environment variables and workload identity only.
    #[default]
    Environment,
    /// A folder with one file per variable, named like it (`AWS_ACCESS_KEY_ID`, …).
    Folder(PathBuf),
}

/// One client, seen as what it can do.
#[derive(Clone)]
struct Backend {
    store: Arc<dyn ObjectStore>,
    /// Stores whose uploads in parts outlive their writer.
    multipart: Option<Arc<dyn MultipartStore>>,
}

impl Backend {
    fn local(store: impl ObjectStore) -> Self {
        Self { store: Arc::new(store), multipart: None }
    }

    fn remote(store: impl ObjectStore + MultipartStore) -> Self {
        let store = Arc::new(store);
        Self { multipart: Some(store.clone()), store }
    }
}

#[derive(Clone)]
struct Loaded {
    backend: Backend,
    secrets: BTreeMap<String, String>,
    at: Instant,
}

pub(crate) struct Client {
    pub(crate) location: Location,
    options: BTreeMap<String, String>,
    credentials: Credentials,
    loaded: RwLock<Loaded>,
}

impl Client {
    pub(crate) fn open(
        uri: &str,
        options: &BTreeMap<String, String>,
        credentials: &Credentials,
    ) -> Result<Self> {
        let location = Location::parse(uri)?;
        let secrets = read_secrets(credentials)?;
        let backend = build(&location, options, &secrets)?;
        Ok(Self {
            location,
            options: options.clone(),
            credentials: credentials.clone(),
            loaded: RwLock::new(Loaded { backend, secrets, at: Instant::now() }),
        })
    }

    /// Runs `operation`; once more with new credentials when it is denied and they changed.
    pub(crate) async fn call<T, F>(
        &self,
        operation: impl Fn(Arc<dyn ObjectStore>) -> F,
    ) -> object_store::Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        self.renewing(|backend| operation(backend.store)).await
    }

    /// Whether uploads in parts can be named, and aborted by anyone: they outlive their writer.
    pub(crate) fn has_multipart(&self) -> bool {
        self.read().backend.multipart.is_some()
    }

    /// [`Client::call`] for uploads in parts; `NotImplemented` without [`Client::has_multipart`].
    pub(crate) async fn call_multipart<T, F>(
        &self,
        operation: impl Fn(Arc<dyn MultipartStore>) -> F,
    ) -> object_store::Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let operation = &operation;
        self.renewing(|backend| async move {
            match backend.multipart {
                Some(store) => operation(store).await,
                None => Err(object_store::Error::NotImplemented {
                    operation: "uploads in parts".to_owned(),
                    implementer: backend.store.to_string(),
                }),
            }
        })
        .await
    }

    async fn renewing<T, F>(&self, operation: impl Fn(Backend) -> F) -> object_store::Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        use object_store::Error as E;
        let Loaded { backend, secrets, .. } = self.current();
        let result = operation(backend).await;
        if let Err(E::PermissionDenied { .. } | E::Unauthenticated { .. }) = &result {
            self.reload();
            // Perhaps it was another operation, denied at the same time, that renewed them.
            let renewed = self.read();
            if renewed.secrets != secrets {
                return operation(renewed.backend).await;
            }
        }
        result
    }

    fn current(&self) -> Loaded {
        let loaded = self.read();
        if loaded.at.elapsed() >= RELOAD_AFTER {
            self.reload();
            return self.read();
        }
        loaded
    }

    fn read(&self) -> Loaded {
        self.loaded.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Reads the credential files again; where they changed, a new client takes over.
    fn reload(&self) {
        let old = self.read();
        let renewed = read_secrets(&self.credentials).and_then(|secrets| match secrets == old.secrets {
            true => Ok(None),
            false => build(&self.location, &self.options, &secrets)
                .map(|backend| Some(Loaded { backend, secrets, at: Instant::now() })),
        });
        let new = match renewed {
            Ok(Some(new)) => new,
            Ok(None) => Loaded { at: Instant::now(), ..old },
            Err(error) => {
                tracing::warn!(%error, "credential files cannot be read; the old ones stay");
                Loaded { at: Instant::now(), ..old }
            }
        };
        *self.loaded.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = new;
    }
}

/// File name → content; hidden entries are the mount's own bookkeeping.
fn read_secrets(credentials: &Credentials) -> Result<BTreeMap<String, String>> {
    let Credentials::Folder(folder) = credentials else { return Ok(BTreeMap::new()) };
    let failed = |path: &FsPath, e: std::io::Error| Error::from_io("read the credentials in", path, &e);
    let mut secrets = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|e| failed(folder, e))? {
        let path = entry.map_err(|e| failed(folder, e))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        let value = match name {
            // The SDK wants the path of this one.
            "GOOGLE_APPLICATION_CREDENTIALS" => path.display().to_string(),
            _ => std::fs::read_to_string(&path).map_err(|e| failed(&path, e))?.trim().to_owned(),
        };
        secrets.insert(name.to_owned(), value);
    }
    Ok(secrets)
}

/// Retries inside the client are short: waiting for a store that is away is done above it,
/// where it can be reported.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(20),
    }
}

fn build(
    location: &Location,
    options: &BTreeMap<String, String>,
    secrets: &BTreeMap<String, String>,
) -> Result<Backend> {
    let uri = location.url.as_str();
    let failed = |e: object_store::Error| Error::from_store("open", uri, &e);
    Ok(match location.scheme {
        Scheme::File | Scheme::Memory if !options.is_empty() => {
            let names = options.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(unknown_option(uri, &names));
        }
        // A commit must survive a power cut, so everything is synced to the disk.
        Scheme::File => Backend::local(LocalFileSystem::new().with_fsync(true)),
        Scheme::Memory => Backend::local(InMemory::new()),
        Scheme::S3 => {
            let start = AmazonS3Builder::from_env().with_url(uri).with_retry(retry());
            let builder = configure::<AmazonS3ConfigKey, _>(start, uri, options, secrets, |b, k, v| {
                b.with_config(k, v)
            })?;
            Backend::remote(builder.build().map_err(failed)?)
        }
        Scheme::Gcs => {
            let start = GoogleCloudStorageBuilder::from_env().with_url(uri).with_retry(retry());
            let builder =
                configure::<GoogleConfigKey, _>(start, uri, options, secrets, |b, k, v| b.with_config(k, v))?;
            Backend::remote(builder.build().map_err(failed)?)
        }
        Scheme::Azure => {
            let start = MicrosoftAzureBuilder::from_env().with_url(uri).with_retry(retry());
            let builder =
                configure::<AzureConfigKey, _>(start, uri, options, secrets, |b, k, v| b.with_config(k, v))?;
            Backend::remote(builder.build().map_err(failed)?)
        }
    })
}

/// Options must be known by name (a typo would otherwise be silent); a Secret may hold more
/// than the SDK's variables.
fn configure<K: FromStr, B>(
    mut builder: B,
    uri: &str,
    options: &BTreeMap<String, String>,
    secrets: &BTreeMap<String, String>,
    set: impl Fn(B, K, String) -> B,
) -> Result<B> {
    for (name, value) in options {
        let key = name.to_ascii_lowercase().parse().map_err(|_| unknown_option(uri, name))?;
        builder = set(builder, key, value.clone());
    }
    for (name, value) in secrets {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = set(builder, key, value.clone());
        }
    }
    Ok(builder)
}

fn unknown_option(uri: &str, names: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        "open",
        uri,
        format!("storage.options: {names} means nothing for this kind of store"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_files_are_read_again_every_minute() {
        let folder = tempfile::tempdir().unwrap();
        let write = |key: &str| std::fs::write(folder.path().join("AWS_ACCESS_KEY_ID"), key).unwrap();
        std::fs::write(folder.path().join("AWS_SECRET_ACCESS_KEY"), "secret").unwrap();
        write("old");
        // What a mounted Secret has besides its keys.
        std::fs::create_dir(folder.path().join("..data")).unwrap();
        let options = BTreeMap::from([("region".to_owned(), "x".to_owned())]);
        let credentials = Credentials::Folder(folder.path().to_owned());
        let client = Client::open("s3://bucket/x", &options, &credentials).unwrap();
        let key_after = |age: Duration| {
            client.loaded.write().unwrap().at = Instant::now().checked_sub(age).unwrap();
            client.current();
            client.read().secrets["AWS_ACCESS_KEY_ID"].clone()
        };
        write("new");
        assert_eq!(key_after(Duration::ZERO), "old");
        assert_eq!(key_after(RELOAD_AFTER), "new");
        // Gone for a moment: what is known stays.
        std::fs::rename(folder.path(), folder.path().with_extension("away")).unwrap();
        assert_eq!(key_after(RELOAD_AFTER), "new");
        std::fs::rename(folder.path().with_extension("away"), folder.path()).unwrap();
    }

    #[test]
    fn a_misspelt_option_is_an_error() {
        let options = BTreeMap::from([("regoin".to_owned(), "x".to_owned())]);
        let error = Client::open("s3://bucket/x", &options, &Credentials::Environment).err().unwrap();
        assert!(error.to_string().contains("regoin"), "{error}");
    }
}
