//! `longstrap status`: where an object is, why, and what belongs to it; without a name all objects.

mod render;
#[cfg(test)]
mod tests;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use kube::api::{DynamicObject, ListParams};
use longstrap_crds::Object;

use super::access::{Access, Cluster};
use super::children;
use super::error::Request;
use super::output::{self, Format};
use super::target::{Found, Kind, Target, as_json, find};

/// Options of `status`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// Object, as docs, synth/docs or cer/run; without one all objects of the namespace
    #[arg(value_name = "[KIND/]NAME")]
    target: Option<Target>,
    /// List the objects of all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["target", "namespace"])]
    all_namespaces: bool,
    /// Show more, or the object itself
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    access: Access,
}

/// Prints the status.
pub(crate) async fn status(args: &StatusArgs) -> Result<u8> {
    let cluster = Cluster::connect(&args.access).await?;
    let told = match &args.target {
        Some(target) => one(&cluster, target, args.output).await?,
        None => all(&cluster, args).await?,
    };
    output::say(&told).map(|_| 0)
}

async fn one(cluster: &Cluster, target: &Target, format: Option<Format>) -> Result<String> {
    let found = find(cluster, target).await?;
    if let Some(format @ (Format::Json | Format::Yaml)) = format {
        return output::write(&serde_json::to_value(&found.raw)?, format);
    }
    let children = children::load(cluster, &found).await;
    let view = render::View {
        object: &found.object,
        children: children.as_ref().map_err(ToString::to_string),
        now: Timestamp::now(),
        wide: format == Some(Format::Wide),
    };
    Ok(render::object(&view))
}

async fn all(cluster: &Cluster, args: &StatusArgs) -> Result<String> {
    let mut listed = Vec::new();
    for kind in Kind::ALL {
        let request = Request { verb: "list", resource: kind.resource(), name: "" };
        let api = if args.all_namespaces { cluster.everywhere(kind) } else { cluster.objects(kind) };
        let list = cluster.ask(request, api.list(&ListParams::default())).await?;
        listed.extend(list.items.into_iter().map(|raw| (kind, raw)));
    }
    if let Some(format @ (Format::Json | Format::Yaml)) = args.output {
        let items = listed.iter().map(|(kind, raw)| Ok(as_json(*kind, raw)?)).collect::<Result<_>>()?;
        return output::write(&output::list(items), format);
    }
    if listed.is_empty() {
        return Ok(match args.all_namespaces {
            true => "no SynthesisJob and no ContextExtensionRun in any namespace".to_owned(),
            false => format!(
                "no SynthesisJob and no ContextExtensionRun in namespace {} (all namespaces: -A)",
                cluster.namespace
            ),
        });
    }
    let lines: Vec<_> = listed.into_iter().map(|(kind, raw)| Line::read(kind, raw)).collect();
    let wide = args.output == Some(Format::Wide);
    Ok(render::list(&lines, args.all_namespaces, wide, Timestamp::now()))
}

/// What is listed of an object.
enum Line {
    Object(Box<Object>),
    /// This version cannot read it: what a later operator has written.
    Unread {
        kind: Kind,
        raw: Box<DynamicObject>,
        why: String,
    },
}

impl Line {
    fn read(kind: Kind, raw: DynamicObject) -> Self {
        match Found::new(kind, raw.clone()) {
            Ok(found) => Self::Object(Box::new(found.object)),
            Err(error) => Self::Unread { kind, raw: Box::new(raw), why: format!("{error:#}") },
        }
    }
}
