//! `longstrap plan`: the memory of every stage as a table, what the trainer will choose by itself,
//! what fits, what a change would buy, and the disk.

use anyhow::{Context, Result, anyhow};
use longstrap_crds::context_extension_run::{Parallelism, Stage};
use longstrap_crds::{ContextExtensionRunSpec, Length, Object};
use longstrap_memory_plan::{Placement, Plan, alternatives, human, largest_context};
use longstrap_model::ModelConfig;
use longstrap_runtime::machine;

use crate::local::outcome::described;
use crate::local::uris;
use crate::{PlanArgs, estimate, text, validate};

/// Prints the plan of every ContextExtensionRun.
pub(crate) fn plan(args: &PlanArgs) -> Result<u8> {
    let Some(mut manifests) = validate::read(&args.files.files) else { return Ok(1) };
    let root = std::path::absolute(&args.out).with_context(|| args.out.display().to_string())?;
    for object in &mut manifests.objects {
        uris::resolve(object, &root).map_err(|errors| anyhow!(errors.join("\n")))?;
    }
    let mut runs = 0;
    for object in &manifests.objects {
        if let Object::ContextExtensionRun(run) = object {
            println!("{}", described(object));
            let memory = Memory { asked: args.memory.map(Length::get), machine: machine::memory() };
            print_run(&run.spec, &manifests.objects, &memory).with_context(|| described(object))?;
            runs += 1;
        }
    }
    if runs == 0 {
        println!("no ContextExtensionRun in these manifests: only training has a memory plan");
    }
    Ok(0)
}

/// Bytes that are known of.
struct Memory {
    /// Of one rank, on the command line.
    asked: Option<u64>,
    /// Of this machine.
    machine: Option<u64>,
}

impl Memory {
    /// What one rank of a stage has, and plans by: as asked, as the run says, or its share of this
    /// machine.
    fn of_rank(&self, spec: &ContextExtensionRunSpec, stage: &Stage) -> Option<u64> {
        self.asked.or(spec.accelerator_memory.map(Length::get)).or_else(|| self.share(spec, stage))
    }

    /// What one rank of a stage has in a local run, where all ranks share this machine.
    fn share(&self, spec: &ContextExtensionRunSpec, stage: &Stage) -> Option<u64> {
        let Parallelism { nodes, ranks_per_node, .. } = stage.parallelism(&spec.parallelism);
        let placement = Placement { nodes, ranks_per_node, one_machine: true };
        self.machine.map(|bytes| placement.share(bytes))
    }
}

fn print_run(spec: &ContextExtensionRunSpec, objects: &[Object], memory: &Memory) -> Result<()> {
    let config = estimate::config(spec)?;
    let mut theta = config.rope.theta;
    for stage in &spec.stages {
        theta = stage.rope_base.as_ref().map_or(4.0 * theta, longstrap_crds::Decimal::value);
        let of_rank = memory.of_rank(spec, stage);
        let plan = estimate::plan(&config, spec, stage, of_rank);
        println!("\nstage {}: RoPE base {theta}, {} steps\n{plan}", stage.name, stage.steps);
        println!("{}", chosen(&plan));
        let verdict = |plan: &Plan, memory| if plan.fits(memory) { "fits" } else { "DOES NOT FIT" };
        if let Some(memory) = of_rank {
            println!("{} in {} a rank", verdict(&plan, memory), human(memory));
        }
        if let Some(share) = memory.share(spec, stage)
            && of_rank.is_some_and(|memory| share < memory)
        {
            let plan = estimate::plan(&config, spec, stage, Some(share));
            println!("{} in {} a rank, its share of this machine", verdict(&plan, share), human(share));
        }
    }
    if let Some(stage) = spec.stages.last()
        && let Some(bytes) = memory.of_rank(spec, stage)
    {
        print_changes(spec, stage, &config, bytes);
    }
    if let Some(bytes) = estimate::training_disk(spec, objects) {
        println!("\nthe run takes up to {} in its storage", human(bytes));
    }
    Ok(())
}

/// What nobody has to ask for.
fn chosen(plan: &Plan) -> &'static str {
    if plan.options.keep_attention {
        "the attention output is kept, which saves computing it twice: it fits"
    } else {
        "attention is computed twice, chosen by itself: its output does not fit beside the rest"
    }
}

fn print_changes(spec: &ContextExtensionRunSpec, stage: &Stage, config: &ModelConfig, memory: u64) {
    let words = |length: Option<usize>| length.map_or("none".to_owned(), |length| text::count(length as u64));
    let plan = estimate::plan(config, spec, stage, Some(memory));
    let longest = largest_context(plan.shape, estimate::options(spec, stage), memory);
    println!("\nlargest context in {} a rank: {}", human(memory), words(longest));
    let mut rows = vec![["CHANGE", "ONE RANK", "LARGEST CONTEXT", "PRICE"].map(str::to_owned).to_vec()];
    for choice in alternatives(&plan, memory) {
        let bytes = human(choice.total_bytes as u64);
        rows.push(vec![choice.change.into(), bytes, words(choice.largest_context), choice.price.into()]);
    }
    println!("{}", text::table(&rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The planner's words name nothing that a manifest cannot ask for.
    #[test]
    fn the_trainer_chooses_by_the_memory_of_a_rank() {
        let manifest = serde_json::json!({
            "storage": {"uri": "file:///run"}, "model": {"uri": "file:///model"},
            "data": [{"name": "d", "uri": "file:///d.jsonl"}],
            "stages": [{"name": "s", "contextLength": 512, "steps": 1}],
            "parallelism": {"nodes": 1, "ranksPerNode": 2}, "acceleratorMemory": "4Gi",
        });
        let mut spec: ContextExtensionRunSpec = serde_json::from_value(manifest).unwrap();
        let of = |spec: &ContextExtensionRunSpec, asked, machine| {
            let memory = Memory { asked, machine };
            let stage = &spec.stages[0];
            (memory.of_rank(spec, stage), memory.share(spec, stage))
        };
        let gib = |n: u64| Some(n << 30);
        assert_eq!(of(&spec, None, gib(16)), (gib(4), gib(8)));
        assert_eq!(of(&spec, None, gib(6)), (gib(4), gib(3)));
        assert_eq!(of(&spec, gib(1), gib(16)), (gib(1), gib(8)));
        // One machine runs the pods of both nodes.
        spec.parallelism.nodes = 2;
        spec.accelerator_memory = None;
        assert_eq!(of(&spec, None, gib(16)), (gib(4), gib(4)));
    }
}
