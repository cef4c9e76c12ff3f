//! The plan as people read it.

use std::fmt;

use crate::{Buffer, CheckpointCost, Plan, Space};

/// Bytes in decimal units with two decimals: `1.53 GB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.iter().find(|(_, size)| bytes as f64 >= *size) {
        Some((unit, size)) => format!("{:.2} {unit}", bytes as f64 / size),
        None => format!("{bytes} B"),
    }
}

/// One line: buffers of one purpose and place.
struct Line {
    what: &'static str,
    space: Space,
    largest: Buffer,
    count: usize,
    bytes: usize,
}

fn lines(plan: &Plan) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for buffer in &plan.buffers {
        let what = buffer.name.describe();
        match lines.iter_mut().find(|l| l.what == what && l.space == buffer.space) {
            Some(line) => {
                line.count += 1;
                line.bytes = line.bytes.saturating_add(buffer.bytes());
                if buffer.bytes() > line.largest.bytes() {
                    line.largest = *buffer;
                }
            }
            None => lines.push(Line {
                what,
                space: buffer.space,
                largest: *buffer,
                count: 1,
                bytes: buffer.bytes(),
            }),
        }
    }
    lines
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let o = &self.options;
        writeln!(
            f,
            "{} parameters, rows of {} tokens, {} on each of {} rank(s)",
            self.shape.parameters(),
            self.row,
            self.tokens,
            o.ranks
        )?;
        writeln!(f, "{:<36} {:<8} {:>5}  {:<22} {:>12}", "buffer", "space", "count", "largest", "bytes")?;
        for line in lines(self) {
            let largest = format!("{} x {} {:?}", line.largest.rows, line.largest.cols, line.largest.dtype);
            let space = format!("{:?}", line.space);
            let bytes = human(line.bytes as u64);
            writeln!(f, "{:<36} {space:<8} {:>5}  {largest:<22} {bytes:>12}", line.what, line.count)?;
        }
        writeln!(f, "{:<73} {:>13}", "one rank in all", human(self.total_bytes() as u64))?;
        let cost = CheckpointCost::new(self);
        if o.checkpoints {
            write!(
                f,
                "a checkpoint: {}, {:.0} s at 1 GB/s, {:.0} s at 100 MB/s",
                human(cost.bytes),
                cost.seconds(1e9),
                cost.seconds(1e8)
            )?;
        }
        Ok(())
    }
}
