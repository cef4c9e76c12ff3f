//! Whether the views of a collective fit together: the same on every implementation.

use super::Peer;
use crate::{Dtype, Error, Result, View};

pub(crate) fn check_exchange(world: usize, send: &[View], to: Peer, recv: &[View], from: Peer) -> Result<()> {
    if to >= world || from >= world {
        return Err(Error::shape("exchange", format!("rank {} is not one of {world}", to.max(from))));
    }
    let pair = send.iter().flat_map(|s| recv.iter().map(move |r| (s, r))).find(|(s, r)| s.overlaps(r));
    match pair {
        Some((s, r)) => {
            Err(Error::shape("exchange", format!("{r:?} is received and overlaps {s:?}, which is sent")))
        }
        None => Ok(()),
    }
}

fn summable(op: &'static str, view: View) -> Result<()> {
    if !matches!(view.dtype, Dtype::F32 | Dtype::F64) {
        let what = format!("{:?} cannot be summed over ranks, only F32 and F64", view.dtype);
        return Err(Error::shape(op, what));
    }
    if view.is_dense() { Ok(()) } else { Err(Error::shape(op, format!("{view:?} must be dense"))) }
}

fn same_shape(op: &'static str, name: &str, view: View, rows: usize, like: View) -> Result<()> {
    if (view.rows, view.cols, view.dtype) != (rows, like.cols, like.dtype) {
        let (cols, dtype) = (like.cols, like.dtype);
        return Err(Error::shape(op, format!("{name} is {view:?} and must be {rows} x {cols} of {dtype:?}")));
    }
    if view.overlaps(&like) {
        return Err(Error::shape(op, format!("{view:?} and {like:?} overlap")));
    }
    Ok(())
}

pub(crate) fn check_all_reduce(x: View) -> Result<()> {
    summable("all_reduce", x)
}

pub(crate) fn check_all_gather(world: usize, x: View, out: View) -> Result<()> {
    same_shape("all_gather", "out", out, world * x.rows, x)
}

pub(crate) fn check_reduce_scatter(world: usize, x: View, out: View) -> Result<()> {
    summable("reduce_scatter", x)?;
    summable("reduce_scatter", out)?;
    same_shape("reduce_scatter", "x", x, world * out.rows, out)
}

pub(crate) fn check_all_to_all(world: usize, x: View, out: View) -> Result<()> {
    same_shape("all_to_all", "out", out, x.rows, x)?;
    if x.rows.is_multiple_of(world) {
        Ok(())
    } else {
        Err(Error::shape("all_to_all", format!("{} rows cannot be shared by {world} ranks", x.rows)))
    }
}
