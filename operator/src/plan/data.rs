//! When a run's data is ready: it is pinned once, by address and digest, and never looked up again.
//!
//! Invariant: a pinned entry never changes, so the SynthesisJob may be deleted afterwards.

use longstrap_crds::{Object, Phase, Reason, SynthesisJob, status::PinnedDataStatus};

use super::draft::{Cause, Draft};

/// Pins what is ready; what is awaited goes into the draft.
pub(super) fn pin(draft: &mut Draft<'_>) {
    let Object::ContextExtensionRun(run) = draft.object() else { return };
    for source in &run.spec.data {
        if draft.data.iter().any(|d| d.name == source.name) {
            continue;
        }
        let pinned = match (&source.synthesis_job_ref, &source.uri) {
            (Some(reference), _) => {
                match ready(&reference.name, draft.world.synthesis.get(&reference.name)) {
                    Ok((uri, digest)) => {
                        PinnedDataStatus { name: source.name.clone(), uri, digest: Some(digest) }
                    }
                    Err(cause) => {
                        draft.awaited.get_or_insert(cause);
                        continue;
                    }
                }
            }
            // `prepare` reads it and tells the digest.
            (None, Some(uri)) => {
                PinnedDataStatus { name: source.name.clone(), uri: uri.clone(), digest: None }
            }
            (None, None) => continue,
        };
        draft.data.push(pinned);
    }
    draft.data.sort_by_key(|d| run.spec.data.iter().position(|source| source.name == d.name));
}

fn ready(name: &str, job: Option<&SynthesisJob>) -> Result<(String, String), Cause> {
    let Some(job) = job else {
        return Err(Cause::new(
            Reason::SynthesisNotFound,
            format!("SynthesisJob {name} does not exist (yet)"),
        ));
    };
    let status = job.status.as_ref();
    let phase = status.and_then(|s| s.common.phase);
    match (phase, status.and_then(|s| s.dataset.as_ref())) {
        (Some(Phase::Complete), Some(dataset)) => Ok((dataset.uri.clone(), dataset.digest.clone())),
        (Some(Phase::Failed), _) => {
            Err(Cause::new(Reason::SynthesisFailed, format!("SynthesisJob {name} has failed")))
        }
        (phase, _) => {
            let word = phase.map_or("not started", Phase::as_str);
            Err(Cause::new(
                Reason::SynthesisNotComplete,
                format!("SynthesisJob {name} is not complete: {word}"),
            ))
        }
    }
}
