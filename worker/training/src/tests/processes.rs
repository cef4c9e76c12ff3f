//! Ranks as real processes over TCP: loss and gradients of one rank, and the bits of threads.
//!
//! The test binary starts itself once for each rank; a rank prints its address and is told all.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use longstrap_engine::{CpuBackend, CpuComm, CpuOptions, TcpOptions};
use longstrap_memory_plan::{Options, Plan};
use longstrap_model::Weights;

use super::rig::*;
use crate::step::Trainer;
use crate::weights;

/// Folder, rank and world size of a child.
const CHILD: &str = "LONGSTRAP_TEST_RANK";
/// What a child prints before its address.
const ADDRESS: &str = "address ";
const LENGTHS: &[usize] = &[40, 1, 33, 26];

type Lines = std::io::Lines<BufReader<ChildStdout>>;

fn options(ranks: usize) -> Options {
    Options { ranks, sources: 2, checkpoints: false, ..Options::default() }
}

fn numbers(g: &Gradients) -> Vec<u8> {
    let gradients = g.by_name.values().flatten().flat_map(|x| x.to_le_bytes());
    g.outcome.loss.to_le_bytes().into_iter().chain(gradients).collect()
}

/// Not a test of its own: one rank, when a parent asks for it.
#[test]
fn rank_process() {
    let Ok(asked) = std::env::var(CHILD) else { return };
    let [dir, rank, world] = asked.split(';').collect::<Vec<_>>().try_into().unwrap();
    let (dir, rank, world): (PathBuf, usize, usize) =
        (dir.into(), rank.parse().unwrap(), world.parse().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("\n{ADDRESS}{}", listener.local_addr().unwrap());
    let mut peers = String::new();
    std::io::stdin().read_line(&mut peers).unwrap();
    let peers = peers.trim().split(',').map(str::to_owned).collect();

    let fixture = Fixture::load("smollm2");
    let row = TestRow::of(LENGTHS, fixture.shape.vocab);
    let plan = Plan::new(fixture.shape, row.tokens(), options(world));
    let sizes = CpuOptions { device_bytes: plan.device_bytes, host_bytes: plan.host_bytes, threads: 1 };
    let backend = CpuBackend::new(sizes).unwrap();
    let limit = Duration::from_secs(60);
    let tcp = TcpOptions {
        listener,
        peers,
        rank,
        generation: 1,
        token: b"test".to_vec(),
        join_timeout: limit,
        timeout: limit,
    };
    let comm = CpuComm::tcp(&backend, &tcp).unwrap();
    let trainer = Trainer::new(backend.as_ref(), &comm, &plan, fixture.config.rms_norm_eps);
    weights::load(&trainer, &Weights::open(&fixture.dir).unwrap()).unwrap();
    let frequencies = fixture.config.rope.inverse_frequencies(fixture.config.head_dim);
    trainer.model.set_inverse_frequencies(&frequencies).unwrap();
    trainer.reset_moments().unwrap();
    let outcome = step(&trainer, &comm, &update(1, row.weight()), std::slice::from_ref(&row));
    std::fs::write(dir.join(format!("{rank}.numbers")), numbers(&gradients(&trainer, outcome))).unwrap();
}

#[test]
fn processes_give_the_bits_of_threads() {
    let fixture = Fixture::load("smollm2");
    let row = TestRow::of(LENGTHS, fixture.shape.vocab);
    let threads = |ranks: usize| {
        on_ranks(&fixture, row.tokens(), options(ranks), &|trainer, comm| {
            let outcome = step(trainer, comm, &update(1, row.weight()), std::slice::from_ref(&row));
            gradients(trainer, outcome)
        })
    };
    let one = &threads(1)[0];
    for world in 2..=3 {
        let dir = tempfile::tempdir().unwrap();
        let start = |rank: usize| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture", "tests::processes::rank_process"])
                .env(CHILD, format!("{};{rank};{world}", dir.path().display()))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut children: Vec<Child> = (0..world).map(start).collect();
        let mut outputs: Vec<_> =
            children.iter_mut().map(|c| BufReader::new(c.stdout.take().unwrap()).lines()).collect();
        let address = |lines: &mut Lines| {
            lines.find_map(|line| line.unwrap().strip_prefix(ADDRESS).map(str::to_owned)).unwrap()
        };
        let peers = outputs.iter_mut().map(address).collect::<Vec<_>>().join(",");
        for child in &mut children {
            writeln!(child.stdin.take().unwrap(), "{peers}").unwrap();
        }
        for (mut child, output) in children.into_iter().zip(outputs) {
            output.for_each(drop);
            assert!(child.wait().unwrap().success());
        }
        let expected = &threads(world)[0];
        assert!(distance(expected, one) < 1e-5);
        for rank in 0..world {
            let found = std::fs::read(dir.path().join(format!("{rank}.numbers"))).unwrap();
            assert!(found == numbers(expected), "rank {rank} of {world} processes");
        }
    }
}
