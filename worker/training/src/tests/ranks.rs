//! Several ranks in threads against one: loss, gradients, bits, memory and bytes on the wire.

use std::sync::Mutex;

use longstrap_engine::Comm;
use longstrap_memory_plan::Options;

use super::rig::*;

fn options(ranks: usize, threads: usize) -> Options {
    Options { ranks, threads, sources: 2, checkpoints: false, ..Options::default() }
}

fn run(fixture: &Fixture, options: Options, rows: &[TestRow]) -> Vec<Gradients> {
    let length = rows.iter().map(TestRow::tokens).max().unwrap();
    let weight = rows.iter().map(TestRow::weight).sum();
    on_ranks(fixture, length, options, &|trainer, comm| {
        let outcome = step(trainer, comm, &update(1, weight), rows);
        gradients(trainer, outcome)
    })
}

/// Row lengths that are and are not multiples of 2P, packed and not, with one-token samples, and a
/// row so short that the last ranks hold nothing but padding.
fn cases() -> Vec<Vec<&'static [usize]>> {
    vec![
        vec![&[96]],
        vec![&[100]],
        vec![&[101]],
        vec![&[40, 1, 33, 1, 26]],
        vec![&[1, 60, 1, 1, 37]],
        vec![&[3]],
        vec![&[70, 26], &[5], &[31, 2, 1]],
    ]
}

#[test]
fn any_number_of_ranks_gives_what_one_gives() {
    for model in MODELS {
        let fixture = Fixture::load(model);
        for case in cases() {
            let rows: Vec<TestRow> = case.iter().map(|l| TestRow::of(l, fixture.shape.vocab)).collect();
            let one = &run(&fixture, options(1, 1), &rows)[0];
            for ranks in 2..=4 {
                let all = run(&fixture, options(ranks, 1), &rows);
                for rank in &all {
                    let difference = distance(rank, one);
                    assert!(difference < 1e-5, "{model} {case:?} on {ranks} ranks: {difference}");
                    assert_eq!(rank, &all[0], "{model} {case:?}: ranks differ in bits");
                }
            }
        }
    }
}

#[test]
fn what_is_computed_twice_or_kept_on_the_host_gives_the_same_bits() {
    let fixture = Fixture::load("llama3");
    let rows = [TestRow::of(&[50, 1, 47], fixture.shape.vocab)];
    for ranks in [1, 3] {
        let kept = run(&fixture, options(ranks, 1), &rows);
        let again = run(&fixture, Options { keep_attention: false, ..options(ranks, 1) }, &rows);
        assert_eq!(kept, again);
        let host = run(&fixture, Options { host_inputs: true, ..options(ranks, 1) }, &rows);
        assert_eq!(kept, host);
    }
}

#[test]
fn bits_depend_on_the_world_size_and_not_on_threads_or_time() {
    let fixture = Fixture::load("smollm2");
    let rows = [TestRow::of(&[64, 1, 36], fixture.shape.vocab), TestRow::of(&[9, 31], fixture.shape.vocab)];
    for ranks in [1, 2, 3] {
        let first = run(&fixture, options(ranks, 1), &rows);
        for threads in [1, 2, 3] {
            assert_eq!(
                run(&fixture, options(ranks, threads), &rows),
                first,
                "{ranks} ranks, {threads} threads"
            );
        }
    }
}

#[test]
fn a_hop_sends_keys_and_values_and_nothing_else() {
    let fixture = Fixture::load("smollm2");
    let row = TestRow::of(&[97], fixture.shape.vocab);
    for ranks in 2..=4usize {
        let t = longstrap_memory_plan::padded(row.tokens(), ranks) / ranks;
        let sent = on_ranks(&fixture, 97, options(ranks, 1), &|trainer, comm: &dyn Comm| {
            let model = &trainer.model;
            let shard = row.shard(comm.rank(), comm.world());
            let counts = Mutex::new(vec![]);
            let watch = |_| {
                trainer.backend().synchronize(longstrap_engine::Stream::Comm).unwrap();
                counts.lock().unwrap().push(comm.bytes_sent());
                true
            };
            trainer.begin().unwrap();
            trainer.accumulate(&update(1, 1.0), 0, &shard, &watch).unwrap();
            watch(crate::model::Place::Reduce);
            let layers = model.plan.shape.layers;
            let counts = counts.into_inner().unwrap();
            let steps: Vec<u64> = counts.windows(2).map(|w| w[1] - w[0]).collect();
            (steps[..layers].to_vec(), steps[layers + 1..].to_vec())
        });
        let hop = (t * fixture.shape.kv_cols() * 2 * 4) as u64;
        for (forward, backward) in sent {
            assert!(forward.iter().all(|b| *b == (ranks as u64 - 1) * hop), "{forward:?}, {hop} each hop");
            // Keys travel once more, their gradients all the way home.
            assert!(backward.iter().all(|b| *b == (2 * ranks as u64 - 1) * hop), "{backward:?}");
        }
    }
}
