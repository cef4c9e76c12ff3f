//! `longstrap plan`: the memory of every stage as a table, what fits, what options would buy.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use longstrap_crds::{ContextExtensionRunSpec, Object};
use longstrap_memory_plan::{alternatives, largest_context};

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
            let given = args.memory.or(run.spec.accelerator_memory).map(longstrap_crds::Length::get);
            print_run(&run.spec, &manifests.objects, given).with_context(|| described(object))?;
            runs += 1;
        }
    }
    if runs == 0 {
        println!("no ContextExtensionRun in these manifests: only training has a memory plan");
    }
    Ok(0)
}

fn print_run(spec: &ContextExtensionRunSpec, objects: &[Object], given: Option<u64>) -> Result<()> {
    let config = estimate::config(spec)?;
    let options = estimate::options(spec);
    let memory = given.or_else(|| machine_memory().map(|all| all / options.ranks as u64));
    let mut theta = config.rope.theta;
    for stage in &spec.stages {
        theta = stage.rope_base.as_ref().map_or(4.0 * theta, longstrap_crds::Decimal::value);
        let plan = estimate::memory(&config, spec, stage);
        println!("\nstage {}: RoPE base {theta}, {} steps\n{plan}", stage.name, stage.steps);
        let Some(memory) = memory else { continue };
        let verdict = if plan.total_bytes() as u64 <= memory { "fits" } else { "DOES NOT FIT" };
        println!("{verdict} in {} a rank", text::bytes(memory));
    }
    if let Some(memory) = memory {
        print_choices(spec, &config, memory);
    }
    if let Some(bytes) = estimate::disk(spec, objects) {
        println!("\nthe run takes up to {} in its storage", text::bytes(bytes));
    }
    Ok(())
}

fn print_choices(spec: &ContextExtensionRunSpec, config: &longstrap_model::ModelConfig, memory: u64) {
    let words = |length: Option<usize>| length.map_or("none".to_owned(), |length| text::count(length as u64));
    let Some(stage) = spec.stages.last() else { return };
    let longest = largest_context(estimate::shape(config), estimate::options(spec), memory);
    println!("\nlargest context in {} a rank: {}", text::bytes(memory), words(longest));
    let mut rows = vec![["CHANGE", "ONE RANK", "LARGEST CONTEXT", "PRICE"].map(str::to_owned).to_vec()];
    for choice in alternatives(&estimate::memory(config, spec, stage), memory) {
        let bytes = text::bytes(choice.total_bytes as u64);
        rows.push(vec![choice.change.into(), bytes, words(choice.largest_context), choice.price.into()]);
    }
    println!("{}", text::table(&rows));
}

/// Memory of this machine in bytes.
fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
