//! Deliberate breakages, one for each thing that is always got wrong; every one must be seen by
//! the measure that the parity tests use.

use std::sync::atomic::{AtomicUsize, Ordering};

use longstrap_engine::{Comm, CpuComm, Peer, Result, Stream, Tag, View};
use longstrap_memory_plan::Options;

use super::rig::*;
use crate::data::shard::{NONE, Shard};

/// What the parity tests allow.
const BOUND: f64 = 1e-5;
const LENGTHS: &[usize] = &[40, 1, 33, 26];

fn options(ranks: usize) -> Options {
    Options { ranks, sources: 2, checkpoints: false, ..Options::default() }
}

fn run(
    fixture: &Fixture,
    ranks: usize,
    wrap: &Wrap<'_>,
    breakage: &(dyn Fn(&mut Shard) + Sync),
) -> Gradients {
    let row = TestRow::of(LENGTHS, fixture.shape.vocab);
    let all = on_wrapped_ranks(fixture, row.tokens(), options(ranks), wrap, &|trainer, comm| {
        let mut shard = row.shard(comm.rank(), comm.world());
        breakage(&mut shard);
        gradients(trainer, step_of_shards(trainer, &update(1, row.weight()), &[shard]))
    });
    all.into_iter().next().unwrap()
}

fn whole(_: usize, comm: CpuComm) -> Box<dyn Comm> {
    Box::new(comm)
}

/// A breakage of the arrays that describe a row.
type Breakage = (&'static str, fn(&mut Shard));

const BREAKAGES: [Breakage; 7] = [
    ("labels shifted inside the shard: the last token of a chunk has none", |s| {
        let half = s.tokens() / 2;
        s.targets[half - 1] = NONE;
    }),
    ("labels not shifted", |s| {
        for i in 0..s.tokens() {
            if s.targets[i] != NONE {
                s.targets[i] = s.ids[i];
            }
        }
    }),
    ("a sample sees the samples before it", |s| {
        s.first_key.iter_mut().filter(|f| **f != NONE).for_each(|f| *f = 0);
    }),
    ("positions of RoPE count within the shard", |s| s.rope_pos = (0..s.tokens() as u32).collect()),
    ("positions of the mask count within the shard", |s| {
        s.query_pos = (0..s.tokens() as u32).collect();
    }),
    ("padding can be seen", |s| {
        let end = s.key_pos.iter().filter(|k| **k != NONE).count() as u32;
        s.key_pos.iter_mut().filter(|k| **k == NONE).for_each(|k| *k = end - 20);
    }),
    ("padding has a target", |s| {
        for i in 0..s.tokens() {
            if s.first_key[i] == NONE {
                s.targets[i] = 1;
                s.weights[i] = 1.0;
            }
        }
    }),
];

#[test]
fn broken_rows_are_seen() {
    let fixture = Fixture::load("smollm2");
    let one = run(&fixture, 1, &whole, &|_| {});
    assert!(distance(&run(&fixture, 3, &whole, &|_| {}), &one) < BOUND);
    for (what, breakage) in BREAKAGES {
        let difference = distance(&run(&fixture, 3, &whole, &breakage), &one);
        assert!(difference > 10.0 * BOUND || difference.is_nan(), "{what}: {difference}");
    }
}

/// Sends keys as values and values as keys, once; or leaves sums out.
struct BrokenComm {
    inner: CpuComm,
    exchange: Option<usize>,
    seen: AtomicUsize,
    reduce: bool,
}

impl Comm for BrokenComm {
    fn rank(&self) -> Peer {
        self.inner.rank()
    }
    fn world(&self) -> usize {
        self.inner.world()
    }
    fn exchange(
        &self,
        s: Stream,
        tag: Tag,
        send: &[View],
        to: Peer,
        recv: &[View],
        from: Peer,
    ) -> Result<()> {
        let count = self.seen.fetch_add(1, Ordering::Relaxed);
        let swapped: Vec<View> = send.iter().rev().copied().collect();
        let send = if self.exchange == Some(count) { &swapped } else { send };
        self.inner.exchange(s, tag, send, to, recv, from)
    }
    fn all_reduce(&self, s: Stream, tag: Tag, x: View) -> Result<()> {
        if self.reduce && x.len() > 8 { Ok(()) } else { self.inner.all_reduce(s, tag, x) }
    }
    fn all_gather(&self, s: Stream, tag: Tag, x: View, out: View) -> Result<()> {
        self.inner.all_gather(s, tag, x, out)
    }
    fn reduce_scatter(&self, s: Stream, tag: Tag, x: View, out: View) -> Result<()> {
        self.inner.reduce_scatter(s, tag, x, out)
    }
    fn all_to_all(&self, s: Stream, tag: Tag, x: View, out: View) -> Result<()> {
        self.inner.all_to_all(s, tag, x, out)
    }
    fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent()
    }
}

#[test]
fn a_wrong_hop_or_a_lost_sum_is_seen() {
    let fixture = Fixture::load("smollm2");
    let one = run(&fixture, 1, &whole, &|_| {});
    // Three ranks, three layers: 2 hops a layer forward; 2 + 3 backward.
    let cases = [
        ("first hop of the first layer", Some(0), false),
        ("last hop of the last forward", Some(5), false),
        ("a hop of keys in the backward", Some(6), false),
        ("a hop of their gradients", Some(7), false),
        ("the gradients' last hop home", Some(20), false),
        ("gradients not summed", None, true),
    ];
    for (what, exchange, reduce) in cases {
        let wrap = |rank: usize, inner: CpuComm| -> Box<dyn Comm> {
            let exchange = exchange.filter(|_| rank == 1);
            Box::new(BrokenComm { inner, exchange, seen: AtomicUsize::new(0), reduce })
        };
        let difference = distance(&run(&fixture, 3, &wrap, &|_| {}), &one);
        assert!(difference > 10.0 * BOUND || difference.is_nan(), "{what}: {difference}");
    }
}

#[test]
fn what_only_the_fixtures_can_see_is_seen() {
    let fixture = Fixture::load("llama3");
    let file = fixture.tensors("packed.safetensors");
    let row = file.row("row.");
    let reference: std::collections::BTreeMap<String, Vec<f32>> = crate::layout::tensors(&fixture.shape)
        .into_iter()
        .map(|t| (t.name.clone(), file.f32(&format!("grad.{}", t.name))))
        .collect();
    type Change = fn(&mut TestRow, &mut f64);
    let changes: [(&str, bool, Change); 4] = [
        ("nothing", false, |_, _| {}),
        ("loss weights of the sources left out", true, |row, _| {
            row.pieces.iter_mut().for_each(|p| p.weight = 1.0);
        }),
        ("divided by the tokens of the row", true, |row, total| *total = row.tokens() as f64),
        ("loss on the prompt as well", true, |row, _| {
            row.pieces.iter_mut().for_each(|p| p.targets = vec![1..p.tokens as u32]);
        }),
    ];
    for (what, broken, change) in changes {
        let (mut row, mut total) = (row.clone(), row.weight());
        change(&mut row, &mut total);
        let got = on_ranks(&fixture, 101, Options { sources: 4, ..options(1) }, &|trainer, comm| {
            let outcome = step(trainer, comm, &update(1, total), std::slice::from_ref(&row));
            gradients(trainer, outcome)
        });
        let worst = got[0].by_name.iter().map(|(n, g)| relative(g, &reference[n])).fold(0.0, f64::max);
        assert_eq!(worst > 1e-4, broken, "{what}: {worst}");
    }
}
