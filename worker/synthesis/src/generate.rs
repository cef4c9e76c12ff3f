//! The second step: N workers fill the shards. A worker takes its own shards by arithmetic, then
//! what nobody works at; it ends well only when ALL shards are committed, so a lost worker holds up
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use longstrap_runtime::{Progress, StepContext, StepError, StepResult};
use longstrap_storage::{AttemptId, Digest, Store};
use tokio::time::Instant;

use crate::bench::Bench;
use crate::candidate::fill;
use crate::error::{Result, SynthError};
use crate::llm::Llm;
use crate::llm::recorded::Recorded;
use crate::meter::Meter;
use crate::shard::{self, ShardManifest};
use crate::{open, sample::Filled};

/// A shard of another worker whose call log does not grow for so long is taken over: longer than
/// most calls take, so that a living worker's calls are not paid for twice.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first pause between two looks at what other workers still have; it doubles up to a tenth of
/// the patience.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Slots that stay empty without one that is filled, after which the generator is at fault and a
/// worker stops, instead of paying for a whole run of nothing.
const EMPTY_SLOTS: u64 = 16;

/// Runs the step.
///
/// # Errors
/// See [`StepError`]; finished shards and calls are kept in any case.
pub async fn generate(ctx: &StepContext) -> StepResult {
    tokio::select! {
        // The stop first: a worker that is told to stop starts no other shard.
        biased;
        () = ctx.stop.cancelled() => Err(StepError::Stopped),
        result = work(ctx) => result,
    }
}

async fn work(ctx: &StepContext) -> StepResult {
    let spec = open::spec(ctx)?;
    let run = open::run(ctx).await?;
    let fingerprint = run.fingerprint;
    let shards = run.content.plan.shards();
    let told = |committed: u64| {
        ctx.termination.write(|message| {
            message.fingerprint = Some(fingerprint.to_string());
            message.committed = message.committed.max(committed);
        })
    };
    let committed = committed(&ctx.store, 0..shards, fingerprint).await?;
    told(committed.len() as u64)?;
    if committed.len() as u32 == shards {
        ctx.progress.activity("all shards are committed");
        return Ok(());
    }
    let bench = open::bench(ctx, spec, run.content).await?;
    let llm = open::generator(ctx, spec, &bench.run).await?;
    let worker = Worker {
        store: &ctx.store,
        attempt: &ctx.attempt_id,
        fingerprint,
        bench: &bench,
        llm: llm.as_ref(),
        index: ctx.index,
        workers: ctx.task.workers.max(1),
        patience: PATIENCE,
        progress: ctx.progress.clone(),
    };
    worker.run(committed, &|count| told(count)).await?;
    Ok(())
}

/// The manifests of these shards that are committed.
///
/// # Errors
/// Storage; a shard of another run.
pub async fn committed(
    store: &Store,
    shards: impl IntoIterator<Item = u32>,
    fingerprint: Digest,
) -> Result<BTreeMap<u32, ShardManifest>> {
    stream::iter(shards)
        .map(|i| async move { Ok::<_, SynthError>((i, shard::manifest(store, i, fingerprint).await?)) })
        .buffered(16)
        .try_filter_map(|(i, manifest)| async move { Ok(manifest.map(|manifest| (i, manifest))) })
        .try_collect()
        .await
}

/// One worker of the step.
pub struct Worker<'a> {
    /// The run's storage.
    pub store: &'a Store,
    /// Names this writer.
    pub attempt: &'a AttemptId,
    /// Of the run.
    pub fingerprint: Digest,
    /// Inputs of all steps.
    pub bench: &'a Bench,
    /// The generator.
    pub llm: &'a dyn Llm,
    /// This worker, from 0.
    pub index: u32,
    /// Workers in all.
    pub workers: u32,
    /// How long a shard of another worker may show no life.
    pub patience: Duration,
    /// Progress report.
    pub progress: Progress,
}

/// Told how many shards are known to be committed.
pub(crate) type OnCommit<'a> = dyn Fn(u64) -> std::io::Result<()> + Sync + 'a;

impl Worker<'_> {
    /// Works until every shard is committed; `done` are those that are already.
    ///
    /// # Errors
    /// What ends the step.
    pub async fn run(&self, done: BTreeMap<u32, ShardManifest>, on_commit: &OnCommit<'_>) -> Result<()> {
        let plan = self.bench.run.plan;
        let meter = Meter::new(self.bench, self.progress.clone());
        for (shard, manifest) in &done {
            meter.committed(&plan.shard(*shard), manifest);
        }
        let mut open: BTreeSet<u32> = (0..plan.shards()).filter(|i| !done.contains_key(i)).collect();
        drop(done);

        // So many shards at once that the generator has enough calls in flight.
        let at_once = self.llm.concurrency().div_ceil(plan.slots_per_shard as usize).max(1);
        let own: Vec<u32> = open.iter().copied().filter(|i| i % self.workers == self.index).collect();
        let mut running = stream::iter(own)
            .map(|i| {
                let meter = &meter;
                async move { self.shard(i, false, meter).await.map(|()| i) }
            })
            .buffer_unordered(at_once);
        while let Some(shard) = running.try_next().await? {
            open.remove(&shard);
            on_commit(u64::from(plan.shards()) - open.len() as u64)?;
        }

        let mut life: BTreeMap<u32, (usize, Instant)> = BTreeMap::new();
        let longest = self.patience / 10;
        let mut pause = FIRST_PAUSE.min(longest);
        while !open.is_empty() {
            for (shard, manifest) in committed(self.store, open.iter().copied(), self.fingerprint).await? {
                meter.committed(&plan.shard(shard), &manifest);
                open.remove(&shard);
            }
            on_commit(u64::from(plan.shards()) - open.len() as u64)?;
            match self.abandoned(&open, &mut life).await? {
                Some(shard) => {
                    self.shard(shard, true, &meter).await?;
                    open.remove(&shard);
                    on_commit(u64::from(plan.shards()) - open.len() as u64)?;
                }
                None if open.is_empty() => {}
                None => {
                    self.progress.activity(format!("{} shards are with other workers", open.len()));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
            }
        }
        Ok(())
    }

    /// A shard that nobody works at: its call log is empty, or has not grown for long. From the
    /// end: owners come from the beginning.
    async fn abandoned(
        &self,
        open: &BTreeSet<u32>,
        life: &mut BTreeMap<u32, (usize, Instant)>,
    ) -> Result<Option<u32>> {
        let mut segments: BTreeMap<u32, usize> = BTreeMap::new();
        for meta in self.store.list("calls").await? {
            if let Some(shard) = meta.key.split('/').nth(1).and_then(|part| part.parse().ok()) {
                *segments.entry(shard).or_default() += 1;
            }
        }
        let now = Instant::now();
        for &shard in open.iter().rev() {
            let count = segments.get(&shard).copied().unwrap_or(0);
            let seen = life.entry(shard).or_insert((count, now));
            if seen.0 != count {
                *seen = (count, now);
            }
            if count == 0 || now.duration_since(seen.1) >= self.patience {
                return Ok(Some(shard));
            }
        }
        Ok(None)
    }

    /// Fills and commits one shard. A stolen one is worked at from its end, and its log is read
    /// again before every slot: should its owner live after all, the two share the work.
    async fn shard(&self, shard: u32, stolen: bool, meter: &Meter) -> Result<()> {
        let mut slots = self.bench.run.plan.shard(shard);
        let folder = shard::call_log(shard);
        let model = self.bench.run.generator.identity();
        let log = Recorded::open(self.llm, &model, self.store, self.attempt, folder.clone()).await?;
        if stolen {
            slots.reverse();
        }
        let at_once = if stolen { 1 } else { self.llm.concurrency().max(1) };
        let log = &log;
        let filled: Vec<Option<Filled>> = stream::iter(slots.iter().copied())
            .map(|slot| async move {
                if stolen {
                    if shard::manifest(self.store, shard, self.fingerprint).await?.is_some() {
                        return Ok::<_, SynthError>(None);
                    }
                    log.refresh().await?;
                }
                let on_tokens = |tokens| meter.spent(slot, tokens);
                let filled = fill(self.bench, log, &on_tokens, slot, 0, Vec::new()).await?;
                let totals = meter.filled(&filled);
                let empty: u64 = totals.slots - totals.kept;
                if totals.kept == 0 && empty >= EMPTY_SLOTS {
                    return Err(shard::nothing_kept(empty, &totals.dropped));
                }
                Ok(Some(filled))
            })
            .buffer_unordered(at_once)
            .try_collect()
            .await?;
        let mut filled: Vec<Filled> = filled.into_iter().flatten().collect();
        filled.sort_by_key(|one| one.slot);
        let manifest = match filled.len() == slots.len() {
            true => shard::commit(self.store, self.attempt, shard, self.fingerprint, &filled).await?,
            // Its owner was quicker.
            false => match shard::manifest(self.store, shard, self.fingerprint).await? {
                Some(manifest) => manifest,
                None => return Err(anyhow::anyhow!("the manifest of shard {shard} has vanished").into()),
            },
        };
        Recorded::remove(self.store, &folder).await?;
        meter.committed(&slots, &manifest);
        Ok(())
    }
}
