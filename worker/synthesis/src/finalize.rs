//! The last step: near-duplicate instructions are dropped and their slots filled again, the samples
//! are published in the order of their slots, and `dataset.json` comes last. Everything is a
//! function of the committed shards and the generator's answers, so a late writer writes the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use futures::{StreamExt, TryStreamExt, stream};
use longstrap_corpus::{NearDuplicates, Phrases, Verdict, load_manifest, sketch_words};
use longstrap_crds::DatasetRef;
use longstrap_dataset::{DatasetFile, DatasetManifest, FORMAT_VERSION, HeldOutFile, PhrasesFile};
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{Commit, Digest, Run, Store, keys};

use crate::candidate::fill;
use crate::dataset::{CardFigures, LocalPart, PartWriter, card};
use crate::error::{Result, SynthError};
use crate::generate::committed;
use crate::llm::recorded::Recorded;
use crate::run::SynthesisRun;
use crate::sample::{Dropped, Filled, Sample};
use crate::shard::{self, ShardManifest, Totals};
use crate::slots::{Kind, Slot};
use crate::{open, slots::Plan};

/// Words of the sequences by which instructions are compared: they are short.
const INSTRUCTION_SHINGLE: usize = 3;
/// Estimated similarity from which two instructions are the same.
const SAME_INSTRUCTION: f64 = 0.7;
/// Call log of the slots that are filled again.
const REFILL_LOG: &str = "calls/refill";

/// Runs the step.
///
/// # Errors
/// See [`StepError`].
pub async fn finalize(ctx: &StepContext) -> StepResult {
    tokio::select! {
        biased;
        () = ctx.stop.cancelled() => Err(StepError::Stopped),
        result = work(ctx) => result,
    }
}

async fn work(ctx: &StepContext) -> StepResult {
    let run = open::run(ctx).await?;
    if let Some(bytes) = ctx.store.try_get(keys::DATASET).await? {
        let manifest = DatasetManifest::from_json(&bytes).map_err(anyhow::Error::from)?;
        if manifest.fingerprint != run.fingerprint {
            let message = format!(
                "{} belongs to another run ({})",
                ctx.store.uri_of(keys::DATASET),
                manifest.fingerprint
            );
            return Err(StepError::invalid(longstrap_crds::Reason::FingerprintMismatch, message));
        }
        return Ok(tell(ctx, &manifest, Digest::of(&bytes))?);
    }
    let plan = run.content.plan;
    let shards = committed(&ctx.store, 0..plan.shards(), run.fingerprint).await?;
    if shards.len() as u32 != plan.shards() {
        return Err(anyhow::anyhow!(
            "{} of {} shards are committed: generate has not ended",
            shards.len(),
            plan.shards()
        )
        .into());
    }
    ctx.progress.activity("comparing instructions");
    let mut kept = Kept::read(&ctx.store, &shards).await?;
    if !kept.refill.is_empty() {
        refill(ctx, &run, &mut kept).await?;
    }
    ctx.progress.activity("publishing the dataset");
    let (manifest, bytes) = publish(ctx, &run, &shards, &kept).await?;
    tell(ctx, &manifest, Digest::of(&bytes))?;
    clean(ctx, &shards).await
}

fn tell(ctx: &StepContext, manifest: &DatasetManifest, digest: Digest) -> std::io::Result<()> {
    ctx.termination.write(|message| {
        message.fingerprint = Some(manifest.fingerprint.to_string());
        message.dataset = Some(DatasetRef {
            uri: ctx.store.uri_of("dataset"),
            digest: digest.to_string(),
            rows: manifest.rows,
            tokens: manifest.tokens,
        });
    })
}

/// Which samples stay, after instructions were compared in the order of slots.
struct Kept {
    instructions: NearDuplicates,
    /// Slots to be filled again: next try, reasons so far.
    refill: Vec<(Slot, u32, Vec<Dropped>)>,
    /// Their new outcome.
    refilled: BTreeMap<Slot, Filled>,
}

impl Kept {
    async fn read(store: &Store, shards: &BTreeMap<u32, ShardManifest>) -> Result<Kept> {
        let mut kept = Kept {
            instructions: NearDuplicates::new(SAME_INSTRUCTION, 1.0),
            refill: Vec::new(),
            refilled: BTreeMap::new(),
        };
        for manifest in shards.values() {
            for filled in shard::read(store, manifest).await? {
                if let Some(again) = kept.judge(&filled) {
                    kept.refill.push(again);
                }
            }
        }
        Ok(kept)
    }

    /// Adds the instruction of a slot, or tells how it is to be filled again.
    fn judge(&mut self, filled: &Filled) -> Option<(Slot, u32, Vec<Dropped>)> {
        let sample = filled.sample.as_ref()?;
        let sketch = sketch_words(&sample.provenance.instruction, INSTRUCTION_SHINGLE);
        match self.instructions.insert(sketch) {
            Verdict::New { .. } => None,
            Verdict::Duplicate(_) => {
                let mut dropped = filled.dropped.clone();
                dropped.push(Dropped::NearDuplicateInstruction);
                Some((filled.slot, sample.provenance.r#try + 1, dropped))
            }
        }
    }
}

/// Fills slots again, in rounds: calls of a round run beside each other, its verdicts fall in the
/// order of slots.
async fn refill(ctx: &StepContext, run: &Run<SynthesisRun>, kept: &mut Kept) -> StepResult {
    let spec = open::spec(ctx)?;
    let bench = open::bench(ctx, spec, run.content.clone()).await?;
    let llm = open::generator(ctx, spec, &bench.run).await?;
    let model = bench.run.generator.identity();
    let log =
        Recorded::open(llm.as_ref(), &model, &ctx.store, &ctx.attempt_id, REFILL_LOG.to_owned()).await?;
    while !kept.refill.is_empty() {
        ctx.progress.activity(format!("filling {} slots with near-duplicates again", kept.refill.len()));
        let mut round = std::mem::take(&mut kept.refill);
        round.sort_by_key(|(slot, _, _)| *slot);
        let (bench, log) = (&bench, &log);
        let filled: Vec<Filled> = stream::iter(round)
            .map(|(slot, attempt, dropped)| fill(bench, log, &|_| (), slot, attempt, dropped))
            .buffered(llm.concurrency().max(1))
            .try_collect()
            .await?;
        for mut one in filled {
            if let Some(before) = kept.refilled.remove(&one.slot) {
                one.usage += before.usage;
            }
            if let Some(again) = kept.judge(&one) {
                kept.refill.push(again);
                one.sample = None;
            }
            kept.refilled.insert(one.slot, one);
        }
    }
    Ok(())
}

/// Goes through all slots in order, in their final state.
async fn each(
    store: &Store,
    shards: &BTreeMap<u32, ShardManifest>,
    kept: &Kept,
    sink: &mut (dyn FnMut(&Filled) -> Result<()> + Send),
) -> Result<()> {
    for manifest in shards.values() {
        for mut filled in shard::read(store, manifest).await? {
            if let Some(again) = kept.refilled.get(&filled.slot) {
                let usage = filled.usage;
                filled = again.clone();
                filled.usage += usage;
            }
            sink(&filled)?;
        }
    }
    Ok(())
}

struct Figures {
    totals: Totals,
    long_input: u64,
    leaks: u64,
    phrases: Phrases,
    parts: PartWriter,
}

impl Figures {
    fn add(&mut self, filled: &Filled) -> Result<()> {
        self.totals.add(filled);
        let Some(sample) = &filled.sample else { return Ok(()) };
        self.long_input += u64::from(sample.kind() == Kind::LongInput);
        self.leaks += leaks(sample, &self.phrases);
        self.parts.push(sample.clone())
    }
}

fn leaks(sample: &Sample, phrases: &Phrases) -> u64 {
    sample.messages.iter().map(|message| phrases.hits(&message.content) as u64).sum()
}

async fn publish(
    ctx: &StepContext,
    run: &Run<SynthesisRun>,
    shards: &BTreeMap<u32, ShardManifest>,
    kept: &Kept,
) -> StepResult<(DatasetManifest, Vec<u8>)> {
    let corpus = open::corpus(ctx, &run.content).await?;
    let dir = ctx.cache_dir.join("dataset");
    std::fs::create_dir_all(&dir)?;
    let mut figures = Figures {
        totals: Totals::default(),
        long_input: 0,
        leaks: 0,
        phrases: corpus.phrases(&ctx.store).await.map_err(SynthError::from)?,
        parts: PartWriter::new(&dir),
    };
    each(&ctx.store, shards, kept, &mut |filled| figures.add(filled)).await?;
    let Figures { totals, long_input, leaks, phrases, parts } = figures;

    let plan: Plan = run.content.plan;
    if totals.kept == 0 {
        return Err(shard::nothing_kept(plan.slots(), &totals.dropped).into());
    }
    let (mut files, mut export) = (Vec::new(), Vec::new());
    for (n, part) in parts.finish()?.iter().enumerate() {
        files.push(upload(ctx, part, &part.parquet, format!("part-{n:05}.parquet")).await?);
        export.push(upload(ctx, part, &part.jsonl, format!("jsonl/part-{n:05}.jsonl")).await?);
    }
    let held_out = match &corpus.held_out {
        None => None,
        Some(object) => {
            let bytes = ctx.store.get_verified(object).await?;
            ctx.store.put(keys::HELD_OUT, bytes).await?;
            let name = "heldout-phrases.bin".to_owned();
            let bytes = phrases.to_bytes();
            let phrases = PhrasesFile { digest: Digest::of(&bytes), name };
            ctx.store.put(&format!("dataset/{}", phrases.name), bytes).await?;
            Some(HeldOutFile {
                name: "heldout.parquet".to_owned(),
                digest: object.digest,
                documents: corpus.report.held_out_documents,
                tokens: corpus.report.held_out_tokens,
                leaks,
                phrases,
            })
        }
    };
    let short = plan.slots() - totals.kept;
    let card = card(
        &run.content,
        &CardFigures {
            rows: totals.kept,
            tokens: totals.tokens,
            long_input,
            long_output: totals.kept - long_input,
            short,
            dropped: &totals.dropped,
            held_out: held_out.as_ref(),
            usage: totals.usage,
        },
    );
    ctx.store.put(keys::DATASET_CARD, card.clone()).await?;
    let manifest = DatasetManifest {
        format_version: FORMAT_VERSION,
        fingerprint: run.fingerprint,
        files,
        export,
        rows: totals.kept,
        tokens: totals.tokens,
        held_out,
        card: DatasetFile { name: "README.md".to_owned(), digest: Digest::of(&card), rows: 0, tokens: 0 },
        tokenizer_digest: run.content.target.tokenizer.clone(),
        template_digest: run.content.target.template.clone(),
        generator: run.content.generator.identity(),
        dropped: totals.dropped,
        short,
        usage: totals.usage,
    };
    let bytes = manifest.to_json().map_err(anyhow::Error::from)?;
    // A published manifest that stands with other bytes is an error of the commit itself.
    let _ = ctx.store.commit(keys::DATASET, bytes.clone(), &Commit::Published).await?;
    if short > 0 {
        tracing::warn!(short, "slots stayed empty: the dataset has fewer samples than asked for");
    }
    Ok((manifest, bytes))
}

async fn upload(ctx: &StepContext, part: &LocalPart, path: &Path, name: String) -> StepResult<DatasetFile> {
    let object = ctx.store.put_file(&format!("dataset/{name}"), path, &|_| ()).await?;
    Ok(DatasetFile { name, digest: object.digest, rows: part.rows, tokens: part.tokens })
}

/// Removes what nothing names any more: data of writers that lost or died, logs of calls.
async fn clean(ctx: &StepContext, shards: &BTreeMap<u32, ShardManifest>) -> StepResult {
    let named: BTreeSet<String> = shards.values().map(|manifest| manifest.data.key.clone()).collect();
    ctx.store.sweep("shards", &named, &ctx.attempt_id).await?;
    if let Some(corpus) = load_manifest(&ctx.store).await.map_err(SynthError::from)? {
        let named = corpus.objects().map(|object| object.key.clone()).collect();
        ctx.store.sweep(keys::CORPUS, &named, &ctx.attempt_id).await?;
    }
    Recorded::remove(&ctx.store, "calls").await?;
    Ok(())
}
