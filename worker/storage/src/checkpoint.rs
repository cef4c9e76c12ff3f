//! The newest checkpoint: the one name that is found by listing.

use std::fmt;
use std::str::FromStr;

use crate::error::Result;
use crate::keys;
use crate::store::Store;

/// Names a checkpoint. Ordered by generation, then step: a zombie of an older generation can
/// write no newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointId {
    /// Gang generation that wrote it.
    pub generation: u64,
    /// Optimizer steps done, counted over all stages of the run.
    pub step: u64,
}

impl CheckpointId {
    /// Its folder: what [`fmt::Display`] and [`FromStr`] write and read.
    pub fn key(&self) -> String {
        keys::checkpoint(self.generation, self.step)
    }

    /// Its manifest: the checkpoint exists when this does.
    pub fn manifest_key(&self) -> String {
        keys::checkpoint_manifest(self.generation, self.step)
    }

    fn of_manifest(key: &str) -> Option<Self> {
        let id: Self = key.rsplit_once('/')?.0.parse().ok()?;
        (id.manifest_key() == key).then_some(id)
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}

impl FromStr for CheckpointId {
    type Err = String;

    fn from_str(key: &str) -> Result<Self, String> {
        let parse = || {
            let rest = key.strip_prefix(keys::CHECKPOINTS)?.strip_prefix('/')?;
            let (generation, step) = rest.split_once('/')?;
            let id = Self { generation: generation.parse().ok()?, step: step.parse().ok()? };
            (id.key() == key).then_some(id)
        };
        parse().ok_or_else(|| format!("{key:?} is no checkpoint: ckpt/GENERATION/STEP is expected"))
    }
}

/// The newest checkpoint whose manifest exists: highest generation, then highest step.
///
/// # Errors
/// As the store answers.
pub async fn newest_checkpoint(store: &Store) -> Result<Option<CheckpointId>> {
    let listed = store.list(keys::CHECKPOINTS).await?;
    Ok(listed.iter().filter_map(|meta| CheckpointId::of_manifest(&meta.key)).max())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[tokio::test]
    async fn newest_is_by_number_and_needs_its_manifest() {
        let store = Store::open("memory:///run", &BTreeMap::new()).unwrap();
        assert_eq!(newest_checkpoint(&store).await.unwrap(), None);
        for key in [
            "ckpt/2/40/checkpoint.json",
            "ckpt/9/7/checkpoint.json",
            "ckpt/10/3/checkpoint.json",
            "ckpt/10/20/checkpoint.json",
            "ckpt/10/100/layer-0.safetensors",
            "ckpt/11/1/checkpoint.json.old",
            "ckpt/x/1/checkpoint.json",
        ] {
            store.put(key, "x").await.unwrap();
        }
        let newest = newest_checkpoint(&store).await.unwrap().unwrap();
        assert_eq!(newest, CheckpointId { generation: 10, step: 20 });
        assert_eq!("ckpt/10/20".parse(), Ok(newest));
        assert!("ckpt/10/020".parse::<CheckpointId>().is_err());
    }
}
