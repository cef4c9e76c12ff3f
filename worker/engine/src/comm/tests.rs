//! Collectives of 1–4 ranks in threads and 2–3 over loopback TCP; strangers, stale generations,
//! damaged frames and dead peers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::{
    Backend, Comm, CpuBackend, CpuComm, CpuOptions, Dtype, Error, Result, Space, Stream, Tag, TcpOptions,
    View,
};

const TAG: Tag = Tag { step: 1, layer: 2, hop: 0 };
const S: Stream = Stream::Comm;

fn backend() -> Arc<CpuBackend> {
    CpuBackend::new(CpuOptions { device_bytes: 32 << 20, host_bytes: 1 << 20, threads: 1 }).unwrap()
}

fn view(offset: usize, rows: usize, cols: usize, dtype: Dtype) -> View {
    View::dense(Space::Device, offset, rows, cols, dtype)
}

fn put(b: &CpuBackend, view: View, f: impl Fn(usize) -> f32) {
    let data: Vec<f32> = (0..view.len()).map(f).collect();
    b.write(view, bytemuck::cast_slice(&data)).unwrap();
}

fn get(b: &CpuBackend, view: View) -> Vec<f32> {
    let mut out = vec![0f32; view.len()];
    b.read(view, bytemuck::cast_slice_mut(&mut out)).unwrap();
    out
}

/// A number that differs by rank and place and whose sums depend on their order.
fn value(rank: usize, i: usize) -> f32 {
    ((rank * 7919 + i * 104_729) % 10_007) as f32 * 1e-3
        + if (rank + i).is_multiple_of(3) { 1e4 } else { -3.3 }
}

/// Runs every collective on one rank and returns all that it holds afterwards.
fn every_collective(b: &CpuBackend, comm: &CpuComm) -> Result<Vec<f32>> {
    let (rank, world) = (comm.rank(), comm.world());
    // More than two pieces of a channel and two chunks of a sum, and no multiple of anything.
    let (n, mb) = (200_003, 1 << 20);
    let x = view(0, 1, n, Dtype::F32);
    let (strided, other) =
        (View { row_stride: 9, ..view(mb, 50, 5, Dtype::F32) }, view(2 * mb, 250, 1, Dtype::F32));
    let (gather, gathered) = (view(3 * mb, 3, 7, Dtype::F32), view(4 * mb, 3 * world, 7, Dtype::F32));
    let (scatter, scattered) =
        (view(5 * mb, 2 * world, 40_000, Dtype::F32), view(8 * mb, 2, 40_000, Dtype::F32));
    let (all, turned) = (view(9 * mb, 4 * world, 3, Dtype::F32), view(10 * mb, 4 * world, 3, Dtype::F32));
    let (big, bigger) = (view(11 * mb, 1, 2_000_000, Dtype::F32), view(20 * mb, 1, 2_000_000, Dtype::F32));
    for v in [x, strided, gather, scatter, all, big] {
        put(b, v, |i| value(rank, i));
    }
    let (next, last) = ((rank + 1) % world, (rank + world - 1) % world);
    comm.exchange(S, TAG, &[strided], next, &[other], last)?;
    // 8 MB each way at once.
    comm.exchange(S, Tag { hop: 9, ..TAG }, &[big], next, &[bigger], last)?;
    comm.all_reduce(S, TAG, x)?;
    comm.all_gather(S, TAG, gather, gathered)?;
    comm.reduce_scatter(S, TAG, scatter, scattered)?;
    comm.all_to_all(S, TAG, all, turned)?;
    // Fewer elements than ranks, and f64.
    let loss = view(30 * mb, 1, 1, Dtype::F64);
    b.fill(S, loss, 0.1 + rank as f32)?;
    comm.all_reduce(S, TAG, loss)?;
    b.synchronize(S)?;

    let sum = |from: usize, i: usize| (1..world).fold(value(0, from + i), |sum, r| sum + value(r, from + i));
    let check = |name: &str, got: &[f32], want: &dyn Fn(usize) -> f32| {
        for (i, got) in got.iter().enumerate() {
            assert_eq!(got.to_bits(), want(i).to_bits(), "{name} {i} on rank {rank} of {world}");
        }
    };
    check("exchange", &get(b, other), &|i| value(last, i));
    check("big", &get(b, bigger), &|i| value(last, i));
    check("all_reduce", &get(b, x), &|i| sum(0, i));
    check("all_gather", &get(b, gathered), &|i| value(i / 21, i % 21));
    check("reduce_scatter", &get(b, scattered), &|i| sum(rank * 80_000, i));
    check("all_to_all", &get(b, turned), &|i| value(i / 12, rank * 12 + i % 12));
    let mut total = [0f64];
    b.read(loss, bytemuck::cast_slice_mut(&mut total)).unwrap();
    let want = (1..world).fold(f64::from(0.1f32), |sum, r| sum + f64::from(0.1 + r as f32));
    assert_eq!(total[0], want);
    Ok(get(b, x))
}

#[test]
fn collectives_in_threads() {
    for world in 1..=4 {
        let backends: Vec<_> = (0..world).map(|_| backend()).collect();
        let comms = CpuComm::channels(&backends, Duration::from_secs(30));
        let held: Vec<_> = thread::scope(|s| {
            let ranks: Vec<_> = backends
                .iter()
                .zip(&comms)
                .map(|(b, c)| s.spawn(|| every_collective(b, c).unwrap()))
                .collect();
            ranks.into_iter().map(|r| r.join().unwrap()).collect()
        });
        assert!(held.iter().all(|h| h == &held[0]), "ranks hold different bits");
    }
    let alone = backend();
    every_collective(&alone, &CpuComm::solo(&alone)).unwrap();
}

#[test]
fn bytes_on_the_wire_are_counted() {
    let backends = [backend(), backend()];
    let comms = CpuComm::channels(&backends, Duration::from_secs(30));
    let (a, b) = (view(0, 10, 30, Dtype::F32), view(4096, 10, 30, Dtype::Bf16));
    thread::scope(|s| {
        for (comm, backend) in comms.iter().zip(&backends) {
            s.spawn(move || {
                let peer = 1 - comm.rank();
                let recv = [View { offset: 8192, ..a }, View { offset: 16_384, ..b }];
                comm.exchange(S, TAG, &[a, b], peer, &recv, peer).unwrap();
                backend.synchronize(S).unwrap();
            });
        }
    });
    assert_eq!(comms.iter().map(Comm::bytes_sent).collect::<Vec<_>>(), [1800, 1800]);
}

/// Options of some ranks of a gang on loopback.
fn gang(world: usize) -> Vec<TcpOptions> {
    let listeners: Vec<_> = (0..world).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let options = |(rank, listener)| TcpOptions {
        listener,
        peers: peers.clone(),
        rank,
        generation: 3,
        token: b"secret".to_vec(),
        join_timeout: Duration::from_secs(10),
        timeout: Duration::from_secs(10),
    };
    listeners.into_iter().enumerate().map(options).collect()
}

/// Joins all ranks and runs `f` on each in a thread of its own.
fn in_threads<R: Send>(
    options: Vec<TcpOptions>,
    f: impl Fn(Arc<CpuBackend>, Result<CpuComm>) -> R + Sync,
) -> Vec<R> {
    thread::scope(|s| {
        let f = &f;
        let ranks: Vec<_> = options
            .into_iter()
            .map(|options| {
                s.spawn(move || {
                    let b = backend();
                    let comm = CpuComm::tcp(&b, &options);
                    f(b, comm)
                })
            })
            .collect();
        ranks.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

#[test]
fn collectives_over_tcp() {
    for world in 1..=3 {
        let held = in_threads(gang(world), |b, comm| every_collective(&b, &comm.unwrap()).unwrap());
        assert!(held.iter().all(|h| h == &held[0]), "ranks hold different bits");
    }
}

#[test]
fn strangers_are_refused_and_both_sides_named() {
    type Change = fn(&mut TcpOptions);
    let changes: [(Change, &str); 3] = [
        (|o| o.token = b"guess".to_vec(), "the token differs"),
        (|o| o.generation = 2, "rank 0 of 2, generation 3, greeted by rank 1 of 2, generation 2"),
        (|o| o.peers.push("127.0.0.1:1".to_owned()), "rank 0 of 2, generation 3, greeted by rank 1 of 3"),
    ];
    let refuse = |change: Change, message: &str| {
        let mut options = gang(2);
        // A stranger that says something else does not end the wait either.
        let mut stranger = TcpStream::connect(&options[0].peers[0]).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        options[0].join_timeout = Duration::from_millis(1500);
        options[1].join_timeout = Duration::from_millis(1500);
        change(&mut options[1]);
        let errors = in_threads(options, |_, comm| comm.err().map(|e| e.to_string()).unwrap_or_default());
        assert!(errors[1].contains(message) && errors[1].contains("lost its peer 0"), "{}", errors[1]);
        assert!(
            errors[0].contains("peer 1: it did not come") && errors[0].contains("refused"),
            "{}",
            errors[0]
        );
    };
    thread::scope(|s| {
        for (change, message) in changes {
            s.spawn(move || refuse(change, message));
        }
    });
}

#[test]
fn ranks_out_of_step_are_told() {
    let outcome = in_threads(gang(2), |b, comm| {
        let comm = comm.unwrap();
        let tag = Tag { layer: comm.rank() as u32, ..TAG };
        let (x, y) = (view(0, 1, 100, Dtype::F32), view(4096, 1, 100, Dtype::F32));
        comm.exchange(S, tag, &[x], 1 - comm.rank(), &[y], 1 - comm.rank()).unwrap();
        b.synchronize(S).unwrap_err()
    });
    // One of them may see its peer hang up before the frame.
    let out_of_step = outcome.iter().find(|e| matches!(e, Error::OutOfStep { .. })).unwrap().to_string();
    assert!(out_of_step.contains("step 1 layer 0 hop 0 (400 bytes)"), "{out_of_step}");
    assert!(out_of_step.contains("step 1 layer 1 hop 0 (400 bytes)"), "{out_of_step}");
}

#[test]
fn a_dead_peer_is_noticed_at_once() {
    let outcome = in_threads(gang(3), |b, comm| {
        let comm = comm.unwrap();
        if comm.rank() == 2 {
            return None;
        }
        comm.all_reduce(S, TAG, view(0, 1, 1000, Dtype::F32)).unwrap();
        b.synchronize(S).err().map(|e| e.to_string())
    });
    for error in &outcome[..2] {
        assert!(error.as_ref().unwrap().contains("lost its peer"), "{error:?}");
    }
    // In threads likewise: the third rank drops its end.
    let backends: Vec<_> = (0..3).map(|_| backend()).collect();
    let mut comms = CpuComm::channels(&backends, Duration::from_secs(60));
    drop(comms.pop());
    for (comm, b) in comms.iter().zip(&backends) {
        comm.all_gather(S, TAG, view(0, 1, 10, Dtype::F32), view(4096, 3, 10, Dtype::F32)).unwrap();
        assert!(b.synchronize(S).unwrap_err().to_string().contains("its thread has ended"));
    }
}

#[test]
fn a_silent_peer_times_out() {
    let mut options = gang(2);
    options[0].timeout = Duration::from_millis(200);
    let told = std::sync::Barrier::new(2);
    let outcome = in_threads(options, |b, comm| {
        let comm = comm.unwrap();
        let mut error = None;
        if comm.rank() == 0 {
            comm.all_reduce(S, TAG, view(0, 1, 100, Dtype::F32)).unwrap();
            error = b.synchronize(S).err().map(|e| e.to_string());
        }
        // The other stays connected, and silent, until then.
        told.wait();
        error
    });
    assert!(outcome[0].as_ref().unwrap().contains("peer 1: no byte moved for 200ms"), "{outcome:?}");
}

#[test]
fn a_frame_damaged_on_the_way_is_an_error() {
    let mut options = gang(2);
    // Rank 1 reaches rank 0 through a proxy that flips one payload byte of the first frame.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let rank0 = std::mem::replace(&mut options[1].peers[0], proxy.local_addr().unwrap().to_string());
    let flip = thread::spawn(move || {
        let (mut client, _) = proxy.accept().unwrap();
        let mut server = TcpStream::connect(rank0).unwrap();
        let (mut back_from, mut back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || {
            let copied = std::io::copy(&mut back_from, &mut back_to);
            // Hang up as the server has, or the client would wait.
            let _ = back_to.shutdown(std::net::Shutdown::Both);
            copied
        });
        let greeting = 8 + 24 + 1 + 6;
        let mut seen = 0;
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = client.read(&mut buffer) {
            let at = greeting + 44 + 10;
            if (seen..seen + n).contains(&at) {
                buffer[at - seen] ^= 1;
            }
            seen += n;
            if server.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
    });
    let errors = in_threads(options, |b, comm| {
        let comm = comm.unwrap();
        let peer = 1 - comm.rank();
        comm.exchange(S, TAG, &[view(0, 1, 100, Dtype::F32)], peer, &[view(4096, 1, 100, Dtype::F32)], peer)
            .unwrap();
        b.synchronize(S).err().map(|e| e.to_string())
    });
    assert!(errors[0].as_ref().unwrap().contains("checksum of the payload"), "{errors:?}");
    flip.join().unwrap();
}

#[test]
fn wrong_shapes_are_refused() {
    let b = backend();
    let comm = CpuComm::solo(&b);
    let (x, y) = (view(0, 2, 3, Dtype::F32), view(4096, 3, 2, Dtype::F32));
    assert!(comm.all_gather(S, TAG, x, y).is_err());
    assert!(comm.all_reduce(S, TAG, View { dtype: Dtype::Bf16, ..x }).is_err());
    assert!(comm.all_reduce(S, TAG, View { row_stride: 5, ..x }).is_err());
    assert!(comm.exchange(S, TAG, &[x], 1, &[y], 0).is_err());
    assert!(comm.exchange(S, TAG, &[x], 0, &[x], 0).is_err());
    assert!(comm.all_reduce(S, TAG, view(1 << 40, 1, 1, Dtype::F32)).is_err());
}
