//! The states of one object, one after the other.
//!
//! Invariant: an API server that is away for a while is waited for, told once; what no waiting can
//! mend ends the stream with an error.

use std::pin::pin;

use anyhow::Result;
use futures::{Stream, StreamExt};
use kube::runtime::{
    WatchStreamExt,
    watcher::{self, watch_object},
};

use super::access::Cluster;
use super::error::{self, ClusterError};
use super::target::Found;

/// Calls `each` with every state of the object from now on, `None` when it is gone, until it
/// returns something.
pub(crate) async fn follow<T>(
    cluster: &Cluster,
    found: &Found,
    mut each: impl FnMut(Option<Found>) -> Option<T>,
) -> Result<T> {
    let watch = watch_object(found.api(cluster), found.name()).default_backoff();
    let mut watch = pin!(lasting(watch, |error| cluster.explain(found.request("watch"), error)));
    while let Some(state) = watch.next().await {
        let state = state?.map(|raw| Found::new(found.kind, raw)).transpose()?;
        if let Some(done) = each(state) {
            return Ok(done);
        }
    }
    anyhow::bail!("the watch of {} has ended", found.described())
}

/// Passes on what a watch brings; of its errors only those that waiting does not mend.
pub(crate) fn lasting<T>(
    watch: impl Stream<Item = watcher::Result<T>>,
    explain: impl Fn(&kube::Error) -> ClusterError,
) -> impl Stream<Item = Result<T, ClusterError>> {
    let mut away = false;
    watch.filter_map(move |item| {
        let passed = match item {
            Ok(item) => {
                if away {
                    eprintln!("the API server answers again");
                }
                away = false;
                Some(Ok(item))
            }
            Err(error) => match client_error(&error) {
                Some(error) if lasts(error) => Some(Err(explain(error))),
                // A watch that the server ends, or that is too old, is no trouble: it begins anew.
                Some(error) if !away => {
                    away = true;
                    eprintln!("the API server does not answer ({}); waiting for it", error::short(error));
                    None
                }
                _ => None,
            },
        };
        futures::future::ready(passed)
    })
}

fn client_error(error: &watcher::Error) -> Option<&kube::Error> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Some(error),
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => None,
    }
}

/// Refusals that the same request would meet again.
fn lasts(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 404 | 405))
}
