//! Run manifests on this machine, plan memory, import models, inspect data, show reports.

fn main() {}
