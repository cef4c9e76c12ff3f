//! Whether a run can fit: memory of a rank against the device or the machine, disk against what
//! the whole run will hold.
//!
//! Invariant: both numbers come from the memory plan; a refusal says what would fit.

use std::path::Path;

use longstrap_crds::Reason;
use longstrap_memory_plan::{Plan, human, largest_context};
use longstrap_runtime::{StepError, StepResult};

/// Refuses a stage whose rank needs more than `memory` bytes.
///
/// # Errors
/// `DoesNotFit`, with the largest window that does.
pub(crate) fn check_memory(stage: &str, plan: &Plan, memory: u64, of_what: &str) -> StepResult {
    if plan.fits(memory) {
        return Ok(());
    }
    let fits = match largest_context(plan.shape, plan.options, memory) {
        Some(length) => format!("rows of {length} tokens would fit"),
        None => "no length fits".to_owned(),
    };
    Err(StepError::invalid(
        Reason::DoesNotFit,
        format!(
            "stage {stage}: a rank needs {} for rows of {} tokens on {} rank(s), and {of_what} is {}; {fits}. \
             Take more ranks (spec.parallelism), or a shorter contextLength (`longstrap plan` shows the table)",
            human(plan.total_bytes() as u64),
            plan.row,
            plan.options.ranks,
            human(memory),
        ),
    ))
}

/// Refuses a run that needs more disk than is free at a local folder.
///
/// # Errors
/// `DoesNotFit`.
pub(crate) fn check_disk(folder: &Path, needed: u64) -> StepResult {
    // The folder may not exist yet; its nearest parent does.
    let existing = folder.ancestors().find(|f| f.exists()).unwrap_or(folder);
    let Ok(stat) = nix::sys::statvfs::statvfs(existing) else { return Ok(()) };
    let free = stat.blocks_available() * stat.fragment_size();
    if needed <= free {
        return Ok(());
    }
    Err(StepError::invalid(
        Reason::DoesNotFit,
        format!(
            "the run needs up to {} of disk at {}, {} are free: make room, or name another storage.uri",
            human(needed),
            folder.display(),
            human(free)
        ),
    ))
}

#[cfg(test)]
mod tests {
    use longstrap_memory_plan::{Options, Shape};

    use super::*;

    const SHAPE: Shape = Shape {
        layers: 2,
        hidden: 64,
        intermediate: 128,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 300,
        tied: true,
    };

    #[test]
    fn a_refusal_says_what_fits() {
        let plan = Plan::new(SHAPE, 100_000, Options::default());
        let needed = plan.total_bytes() as u64;
        check_memory("s", &plan, needed, "x").unwrap();
        let error = check_memory("long", &plan, needed / 2, "acceleratorMemory").unwrap_err().to_string();
        assert!(error.contains("stage long") && error.contains("would fit"), "{error}");
        check_disk(Path::new("/tmp/not/there"), 1).unwrap();
        let error = check_disk(Path::new("/tmp/not/there"), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("are free"), "{error}");
    }
}
