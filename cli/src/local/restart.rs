//! `--restart-from`: runs start over below a new prefix, beside their old results.

use anyhow::{Context, Result};
use longstrap_crds::Object;
use longstrap_storage::{Restart, RestartFrom as From, Store};

use super::executor::new_uid;
use super::outcome::described;
use crate::RestartFrom;

/// Whether an object starts over.
pub(crate) fn concerns(from: RestartFrom, object: &Object) -> bool {
    match from {
        RestartFrom::Data => true,
        RestartFrom::Stage => matches!(object, Object::ContextExtensionRun(_)),
    }
}

/// Records the restart in the storage of every object that it concerns.
pub(crate) async fn start_over(objects: &[Object], from: RestartFrom) -> Result<()> {
    let concerned = objects.iter().filter(|object| concerns(from, object));
    let from = match from {
        RestartFrom::Data => From::Data,
        RestartFrom::Stage => From::Stage,
    };
    let request_id = new_uid();
    for object in concerned {
        let storage = &object.common().storage;
        let restart = Restart { from, request_id: request_id.clone() };
        let store = Store::open(&storage.uri, &storage.options).with_context(|| described(object))?;
        let (_, number) = store.start_over(&restart).await.with_context(|| described(object))?;
        eprintln!("{}: starts over below {}/r{number}", described(object), storage.uri.trim_end_matches('/'));
    }
    Ok(())
}
