//! Uploads in parts that a killed writer leaves behind can be found and aborted.
//!
//! The store keeps (and bills) their parts for ever, and the client library cannot list them, so
//! each upload's id is recorded under its writer before the first part goes.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, MultipartUpload, ObjectStoreExt, PutPayload, PutResult, UploadPart};
use serde::{Deserialize, Serialize};

use crate::attempt::AttemptId;
use crate::client::Client;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::keys;
use crate::store::Store;

/// Who writes, and where its records lie.
#[derive(Debug)]
pub(crate) struct Writer {
    attempt: AttemptId,
    root: Path,
}

/// Content of `uploads/{attempt}/….json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// From the root of the bucket.
    path: String,
    upload_id: String,
}

impl Store {
    /// The same store, which records uploads in parts as `attempt`'s, below this root.
    pub fn written_by(&self, attempt: &AttemptId) -> Self {
        let writer = Writer { attempt: attempt.clone(), root: self.root.clone() };
        Self { writer: Some(Arc::new(writer)), ..self.clone() }
    }

    /// Begins an upload in parts; where the store would keep them for ever and the writer is
    /// known, with a record, whose key is returned.
    pub(crate) async fn begin_upload(&self, key: &str) -> Result<(Box<dyn MultipartUpload>, Option<String>)> {
        let path = self.path(key);
        let failed = |error| Error::from_store("upload", self.uri_of(key), &error);
        if !self.client.has_multipart() {
            let upload = self.client.call(|store| {
                let path = path.clone();
                async move { store.put_multipart(&path).await }
            });
            return Ok((upload.await.map_err(failed)?, None));
        }
        let create = self.client.call_multipart(|store| {
            let path = path.clone();
            async move { store.create_multipart(&path).await }
        });
        let id = create.await.map_err(failed)?;
        let upload = Upload {
            client: self.client.clone(),
            path: path.clone(),
            id: id.clone(),
            parts: Arc::default(),
            next: 0,
        };
        let Some(writer) = &self.writer else { return Ok((Box::new(upload), None)) };
        let record = keys::upload(&writer.attempt, &Digest::of(format!("{path} {id}")).hex());
        let content = Record { path: path.to_string(), upload_id: id };
        let bytes = serde_json::to_vec(&content)
            .map_err(|e| Error::new(ErrorKind::Malformed, "upload", self.uri_of(key), e.to_string()))?;
        self.records(writer).put(&record, bytes).await?;
        Ok((Box::new(upload), Some(record)))
    }

    /// The upload is finished or aborted.
    pub(crate) async fn forget_upload(&self, record: &str) -> Result<()> {
        match &self.writer {
            Some(writer) => self.records(writer).delete(record).await,
            None => Ok(()),
        }
    }

    fn records(&self, writer: &Writer) -> Self {
        Self { root: writer.root.clone(), ..self.clone() }
    }

    /// Aborts the uploads that dead writers recorded below this root; how many.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn sweep_uploads(&self, now: &AttemptId) -> Result<usize> {
        if !self.client.has_multipart() {
            return Ok(0);
        }
        let mut aborted = 0;
        for meta in self.list(keys::UPLOADS).await? {
            if !AttemptId::of_key(&meta.key).is_some_and(|writer| writer.is_dead_to(now)) {
                continue;
            }
            let record: Record = serde_json::from_slice(&self.get(&meta.key).await?).map_err(|e| {
                Error::new(ErrorKind::Malformed, "read", self.uri_of(&meta.key), e.to_string())
            })?;
            let path = Path::from(record.path.as_str());
            match abort(&self.client, &path, &record.upload_id).await {
                // Finished, or aborted by another: only the record was left.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => {
                    let object = self.client.location.uri_of(&path);
                    return Err(Error::from_store("abort the upload of", object, &error));
                }
            }
            self.delete(&meta.key).await?;
            aborted += 1;
        }
        Ok(aborted)
    }
}

async fn abort(client: &Client, path: &Path, id: &MultipartId) -> object_store::Result<()> {
    client.call_multipart(|store| async move { store.abort_multipart(path, id).await }).await
}

/// An upload whose id we know. It may take longer than its first credentials live.
struct Upload {
    client: Arc<Client>,
    path: Path,
    id: MultipartId,
    parts: Arc<Mutex<Vec<(usize, PartId)>>>,
    next: usize,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload({}, {})", self.path, self.id)
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let number = self.next;
        self.next += 1;
        let (client, path, id) = (self.client.clone(), self.path.clone(), self.id.clone());
        let parts = self.parts.clone();
        Box::pin(async move {
            let (path, id, data) = (&path, &id, &data);
            let send = |store: Arc<dyn MultipartStore>| async move {
                store.put_part(path, id, number, data.clone()).await
            };
            let part = client.call_multipart(send).await?;
            parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((number, part));
            Ok(())
        })
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let mut parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(|p| p.into_inner()));
        parts.sort_by_key(|(number, _)| *number);
        let parts: Vec<PartId> = parts.into_iter().map(|(_, part)| part).collect();
        let (path, id, parts) = (&self.path, &self.id, &parts);
        let complete = |store: Arc<dyn MultipartStore>| async move {
            store.complete_multipart(path, id, parts.clone()).await
        };
        self.client.call_multipart(complete).await
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        abort(&self.client, &self.path, &self.id).await
    }
}
