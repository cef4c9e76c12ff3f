//! Large objects to and from local files, streamed in pieces of a few MiB.

use std::path::Path as FsPath;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::{MultipartUpload, PutPayload};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::verified::ObjectRef;

const PART: u64 = 8 << 20;
/// S3 takes at most 10,000 parts.
const MOST_PARTS: u64 = 9_000;
const PARTS_IN_FLIGHT: usize = 4;

impl Store {
    /// Uploads the file `from` to `key` (a unique name), in parts when it is large.
    /// `progress` gets the bytes sent so far.
    ///
    /// # Errors
    /// As the store answers; as the file system answers for `from`.
    pub async fn put_file(
        &self,
        key: &str,
        from: &FsPath,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<ObjectRef> {
        let failed = |e: std::io::Error| Error::from_io("read", from, &e);
        let size = tokio::fs::metadata(from).await.map_err(failed)?.len();
        if size <= PART {
            let bytes = tokio::fs::read(from).await.map_err(failed)?;
            let object = self.put_ref(key, bytes).await?;
            progress(object.bytes);
            return Ok(object);
        }
        let part = PART.max(size.div_ceil(MOST_PARTS));
        self.patiently(|| self.put_parts(key, from, part, progress)).await
    }

    async fn put_parts(
        &self,
        key: &str,
        from: &FsPath,
        part: u64,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<ObjectRef> {
        let failed = |error| Error::from_store("upload", self.uri_of(key), &error);
        let (mut upload, record) = self.begin_upload(key).await?;
        let sent = send_parts(upload.as_mut(), from, part, failed, progress).await;
        let result = match sent {
            Ok(sent) => upload.complete().await.map(|_| sent).map_err(failed),
            Err(error) => Err(error),
        };
        if result.is_err()
            && let Err(abort) = upload.abort().await
        {
            // The record stays: a later attempt aborts it.
            tracing::warn!(key, %abort, "an unfinished upload could not be aborted");
        } else if let Some(record) = record {
            self.forget_upload(&record).await?;
        }
        let (bytes, digest) = result?;
        Ok(ObjectRef { key: key.to_owned(), digest, bytes })
    }

    /// Copies the object to the file `to`, which appears only when it is whole.
    /// `progress` gets the bytes received so far.
    ///
    /// # Errors
    /// As the store answers; as the file system answers for `to`.
    pub async fn download(
        &self,
        key: &str,
        to: &FsPath,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<()> {
        self.download_checked(key, to, progress, |_, _| Ok(())).await
    }

    pub(crate) async fn download_checked(
        &self,
        key: &str,
        to: &FsPath,
        progress: &(dyn Fn(u64) + Send + Sync),
        check: impl Fn(u64, Digest) -> Result<()>,
    ) -> Result<()> {
        let failed = |e: std::io::Error| Error::from_io("write", to, &e);
        let size = match self.size(key).await? {
            Some(size) => size,
            // Reads once more for the error that names the object.
            None => return self.get(key).await.map(drop),
        };
        if let Some(folder) = to.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(failed)?;
        }
        let mut name = to.as_os_str().to_owned();
        name.push(".part");
        let unfinished = std::path::PathBuf::from(name);
        let mut file = File::create(&unfinished).await.map_err(failed)?;
        let mut hasher = Hasher::default();
        let mut at = 0;
        while at < size {
            let end = size.min(at + PART);
            let bytes = self.get_range(key, at..end).await?;
            hasher.update(&bytes);
            file.write_all(&bytes).await.map_err(failed)?;
            at = end;
            progress(at);
        }
        file.flush().await.map_err(failed)?;
        check(size, hasher.finish())?;
        tokio::fs::rename(&unfinished, to).await.map_err(failed)
    }
}

/// Sends the whole file with a few parts in flight; returns its length and digest.
async fn send_parts(
    upload: &mut dyn MultipartUpload,
    from: &FsPath,
    part: u64,
    refused: impl Fn(object_store::Error) -> Error,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(u64, Digest)> {
    let failed = |e: std::io::Error| Error::from_io("read", from, &e);
    let mut file = File::open(from).await.map_err(failed)?;
    let mut hasher = Hasher::default();
    let mut in_flight = FuturesUnordered::new();
    let mut sent = 0;
    let mut next = read_part(&mut file, part).await.map_err(failed)?;
    while !next.is_empty() || !in_flight.is_empty() {
        if !next.is_empty() && in_flight.len() < PARTS_IN_FLIGHT {
            hasher.update(&next);
            let length = next.len() as u64;
            let sending = upload.put_part(PutPayload::from_bytes(next));
            in_flight.push(async move { sending.await.map(|()| length) });
            next = read_part(&mut file, part).await.map_err(failed)?;
        } else if let Some(done) = in_flight.next().await {
            sent += done.map_err(&refused)?;
            progress(sent);
        }
    }
    Ok((sent, hasher.finish()))
}

/// The next `size` bytes, fewer at the file's end.
async fn read_part(file: &mut File, size: u64) -> std::io::Result<Bytes> {
    let mut buffer = BytesMut::new();
    let mut rest = file.take(size);
    loop {
        buffer.reserve(1 << 20);
        if rest.read_buf(&mut buffer).await? == 0 {
            return Ok(buffer.freeze());
        }
    }
}
