//! The first step: everything that decides content is resolved and written down, and what can never
//! work ends here, before a generator is asked for anything.

mod changes;
mod corpus;
mod files;

use std::collections::BTreeMap;

use longstrap_crds::task::ENV_PROMPTS_DIR;
use longstrap_crds::{Reason, SynthesisJobSpec};
use longstrap_model::{Message, Role};
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{Digest, RunCommit, keys};

use crate::error::{Result, SynthError};
use crate::llm::{Call, Llm, Params};
use crate::open;
use crate::prompts::PromptTexts;
use crate::run::{
    CorpusRun, FORMAT_VERSION, GeneratorRun, Limits, RetrieverRun, SamplesRun, SynthesisRun, TargetRef,
    length_shares, sources,
};
use crate::slots::Plan;
use crate::target::Target;
use crate::variety::Variety;

/// Tokens that a sample has at least besides its frame.
const LEAST_ROOM: u64 = 64;

/// Runs the step.
///
/// # Errors
/// See [`StepError`].
pub async fn prepare(ctx: &StepContext) -> StepResult {
    ctx.claim_storage().await?;
    tokio::select! {
        biased;
        () = ctx.stop.cancelled() => Err(StepError::Stopped),
        result = work(ctx) => result,
    }
}

async fn work(ctx: &StepContext) -> StepResult {
    let spec = open::spec(ctx)?;
    let target = open::target(ctx, spec).await?;
    let prompts = PromptTexts::load(longstrap_runtime::env::path(ENV_PROMPTS_DIR).as_deref())
        .map_err(SynthError::from)?;
    let mut generator = open::generator_run(ctx, &spec.generator).await?;
    let prepared = ctx.store.try_get(keys::RUN).await?.is_some();
    if prepared {
        generator.keep_instruction_set(&open::run(ctx).await?.content.generator);
    } else {
        open::check_window(ctx, &spec.generator).await?;
    }
    let corpus = corpus::open(ctx, spec, &target, prepared).await?;
    let manifest = &corpus.manifest;
    let run = resolve(
        spec,
        TargetRef { tokenizer: target.tokenizer().digest(), template: target.template().digest() },
        generator,
        prompts.texts().clone(),
        corpus_run(spec, manifest.digest, manifest.report.documents, manifest.report.tokens),
    );
    if !prepared {
        check(&run, &corpus.tokens, &target)?;
        if !run.generator.is_embedded() {
            greet(ctx, spec).await?;
        }
    }
    let changes = match ctx.store.commit_run(&run).await? {
        RunCommit::Committed(fingerprint) if corpus.changes.is_empty() => {
            ctx.termination.write(|message| message.fingerprint = Some(fingerprint.to_string()))?;
            return Ok(());
        }
        RunCommit::Committed(_) => Vec::new(),
        RunCommit::Changed(changes) => changes,
    };
    let lines = changes::describe(&changes, &corpus.changes, spec);
    let message = format!(
        "{} holds a run with other inputs; changed since:\n  {}\nPut them back, start over with --restart-from \
         data, or take another output folder (spec.storage.uri)",
        ctx.store.uri(),
        lines.join("\n  ")
    );
    Err(StepError::invalid(Reason::FingerprintMismatch, message))
}

fn corpus_run(spec: &SynthesisJobSpec, digest: Digest, documents: u64, tokens: u64) -> CorpusRun {
    let held_out_tokens = corpus::held_out_tokens(spec);
    CorpusRun { sources: sources(spec), held_out_tokens, digest, documents, tokens }
}

fn resolve(
    spec: &SynthesisJobSpec,
    target: TargetRef,
    generator: GeneratorRun,
    prompts: BTreeMap<String, String>,
    corpus: CorpusRun,
) -> SynthesisRun {
    let long_output = spec.samples.long_output.as_ref();
    let context_length = spec.generator.context_length.get();
    SynthesisRun {
        format_version: FORMAT_VERSION,
        seed: spec.seed,
        target,
        corpus,
        limits: Limits::new(generator.is_embedded(), context_length),
        generator,
        context_length,
        retriever: RetrieverRun { method: "bm25".to_owned(), max_documents: spec.retriever.max_documents },
        samples: SamplesRun {
            lengths: length_shares(spec),
            long_output: long_output.map(|output| (output.min_tokens.get(), output.max_tokens.get())),
        },
        variety: Variety::default(),
        prompts,
        plan: Plan::new(
            spec.samples.long_input.as_ref().map_or(0, |input| input.count),
            long_output.map_or(0, |output| output.count),
        ),
    }
}

/// Whether what is asked for can be made of this corpus. `tokens`: of its documents.
///
/// # Errors
/// With the numbers.
pub fn check(run: &SynthesisRun, tokens: &[u32], target: &Target) -> Result<()> {
    let empty = [Message::new(Role::User, ""), Message::new(Role::Assistant, "")];
    let frame = target.rendered(&empty)? as u64;
    let have: u64 = tokens.iter().map(|&n| u64::from(n)).sum();
    for share in &run.samples.lengths {
        let invalid = |message: String| {
            Err(SynthError::invalid(
                Reason::InvalidData,
                format!("spec.samples.longInput.lengths[{}]: {message}", share.name),
            ))
        };
        if share.from < frame + LEAST_ROOM {
            return invalid(format!(
                "{} tokens cannot be reached from below: the chat template alone takes {frame}; ask for at \
                 least {}",
                share.from,
                frame + LEAST_ROOM
            ));
        }
        // The answer can fill a thirteenth at most (see the room for it).
        let needed = (share.to - share.to / 13).saturating_sub(frame);
        if have < needed {
            return invalid(format!(
                "{} tokens cannot be reached with this corpus: after cleaning and holding out it has {have} \
                 tokens in {} documents, and one sample needs at least {needed}; ask for shorter samples or \
                 give more text",
                share.to,
                tokens.len()
            ));
        }
        let mut longest = tokens.to_vec();
        longest.sort_unstable_by(|a, b| b.cmp(a));
        let most: u64 =
            longest.iter().take(run.retriever.max_documents as usize).map(|&n| u64::from(n)).sum();
        if most < needed {
            tracing::warn!(
                length = share.to,
                most,
                "retriever.maxDocuments is too small for this length: samples are filled with unread documents"
            );
        }
    }
    if let Some((min, max)) = run.samples.long_output {
        let fit = tokens.iter().filter(|&&n| (min..=max).contains(&u64::from(n))).count() as u64;
        if fit < run.plan.long_output {
            return Err(SynthError::invalid(
                Reason::InvalidData,
                format!(
                    "spec.samples.longOutput: asks for {} documents of {min} to {max} tokens, and this corpus \
                     has {fit}; widen minTokens and maxTokens, lower count, or give more text",
                    run.plan.long_output
                ),
            ));
        }
    }
    Ok(())
}

/// One small call: an endpoint that is away, refuses the key or is no chat server is known before
/// anything waits for it.
async fn greet(ctx: &StepContext, spec: &SynthesisJobSpec) -> StepResult {
    ctx.progress.activity("asking the endpoint for a first answer");
    let params = Params {
        max_tokens: 16,
        temperature: 0.0,
        top_p: 1.0,
        seed: spec.seed,
        stop: Vec::new(),
        answer_prefix: String::new(),
        no_repeat_ngram: 0,
    };
    let call = Call { messages: vec![Message::new(Role::User, "Answer with the word: ready")], params };
    open::endpoint(ctx, spec)?.chat(&call).await.map_err(SynthError::from)?;
    Ok(())
}
