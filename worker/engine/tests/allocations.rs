//! What a step allocates beyond its arenas: only the packing buffers of matrix products, at most
//! 4 MiB a thread, however large the product is, and the pieces in which ranks exchange what they must.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longstrap_engine::{
    Attention, AttentionGrad, Backend, Beta, Comm, CpuBackend, CpuComm, CpuOptions, CrossEntropy, Dtype,
    Gemm, Heads, Mask, Space, Stream, Tag, TcpOptions, Transpose, View,
};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: they share the counters.
static TURN: Mutex<()> = Mutex::new(());

const MIB: usize = 1 << 20;
const C: Stream = Stream::Compute;

/// Bytes that were live at once beyond those before.
fn peak(run: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    run();
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn packing_stays_below_4_mib_a_thread() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let threads = 2;
    let options = CpuOptions { device_bytes: 700 * MIB, host_bytes: 0, threads };
    let backend = CpuBackend::new(options).expect("arenas");
    let mut next = 0;
    let mut view = |rows, cols, dtype| {
        let view = View::dense(Space::Device, next, rows, cols, dtype);
        next = view.end().next_multiple_of(64);
        view
    };
    let (no, yes) = (Transpose::No, Transpose::Yes);
    // Of SmolLM2-135M at 2,048 tokens: dW of gate and up, the head on a tile, dE; and from bf16.
    let shapes = [
        ((3072, 576, 2048), yes, no, Dtype::F32),
        ((256, 49_152, 576), no, yes, Dtype::F32),
        ((49_152, 576, 256), yes, no, Dtype::F32),
        ((256, 576, 49_152), no, no, Dtype::F32),
        ((2048, 1536, 576), no, yes, Dtype::Bf16),
        ((33, 2000, 5000), no, yes, Dtype::F32),
    ];
    for ((m, n, k), ta, tb, dtype) in shapes {
        let a = if ta == no { view(m, k, dtype) } else { view(k, m, dtype) };
        let b = if tb == no { view(k, n, dtype) } else { view(n, k, dtype) };
        let op = Gemm { a, ta, b, tb, c: view(m, n, Dtype::F32), beta: Beta::One };
        // Threads keep a slab of their own from their first product on.
        backend.gemm(C, op).expect("gemm");
        let used = peak(|| backend.gemm(C, op).expect("gemm"));
        assert!(used <= threads * 4 * MIB, "{m}x{n}x{k} {dtype:?} used {used} bytes");
    }
}

#[test]
fn other_kernels_allocate_next_to_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let options = CpuOptions { device_bytes: 200 * MIB, host_bytes: 0, threads: 1 };
    let backend = CpuBackend::new(options).expect("arenas");
    let mut next = 0;
    let mut view = |rows, cols, dtype| {
        let view = View::dense(Space::Device, next, rows, cols, dtype);
        next = view.end().next_multiple_of(64);
        view
    };
    let (t, f32) = (1500, Dtype::F32);
    let heads = Heads { query: 9, kv: 3, dim: 64 };
    let (q, k, v) = (view(t, 576, f32), view(t, 192, f32), view(t, 192, f32));
    let ids = [(); 3].map(|()| view(t, 1, Dtype::U32));
    let positions: Vec<u8> = (0..t as u32).flat_map(u32::to_le_bytes).collect();
    backend.write(ids[0], &positions).expect("positions");
    backend.write(ids[2], &positions).expect("positions");
    let mask = Mask { q_pos: ids[0], first_key: ids[1], k_pos: ids[2] };
    let (o, lse, delta) = (view(t, 576, f32), view(t, 9, f32), view(t, 9, f32));
    let (d_o, dq, dk, dv) = (view(t, 576, f32), view(t, 576, f32), view(t, 192, f32), view(t, 192, f32));
    let (logits, weights, nll) = (view(100, 49_152, f32), view(100, 1, f32), view(100, 1, f32));
    let targets = view(100, 1, Dtype::U32);
    let (table, ids) = (view(49_152, 576, f32), ids[0]);
    let step = || {
        backend.fill(C, lse, f32::NEG_INFINITY)?;
        backend.attn(C, Attention { q, k, v, mask, heads, scale: 0.125, o, lse })?;
        backend.attn_delta(C, o, d_o, delta)?;
        let grad = AttentionGrad { q, k, v, mask, heads, scale: 0.125, lse, delta, d_o, dq, dk, dv };
        backend.attn_grad(C, grad)?;
        backend.embed_grad(C, ids, o, table)?;
        backend.cross_entropy(C, CrossEntropy { logits, targets, weights, scale: 1.0, nll, grad: true })
    };
    let step = || step().map_err(|e: longstrap_engine::Error| e.to_string()).expect("step");
    step();
    let used = peak(step);
    // Tiles of attention are products, too: they pack less than a block.
    assert!(used <= 3 * MIB / 2, "used {used} bytes");
}

/// One rank over TCP: hands a block of 8 MiB on and adds up another.
fn exchange(backend: &Arc<CpuBackend>, options: &TcpOptions) -> longstrap_engine::Result<()> {
    let comm = CpuComm::tcp(backend, options)?;
    let world = options.peers.len();
    let mut blocks = (0..3).map(|i| View::dense(Space::Device, i * 8 * MIB, 2, MIB, Dtype::F32));
    let [send, recv, sum] = [(); 3].map(|()| blocks.next().expect("three"));
    let (to, from) = ((options.rank + 1) % world, (options.rank + world - 1) % world);
    comm.exchange(Stream::Comm, Tag::default(), &[send], to, &[recv], from)?;
    comm.all_reduce(Stream::Comm, Tag { step: 1, ..Tag::default() }, sum)?;
    backend.synchronize(Stream::Comm)
}

#[test]
fn ranks_exchange_in_pieces_however_much_it_is() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for world in [2, 3] {
        let options = CpuOptions { device_bytes: 24 * MIB, host_bytes: 0, threads: 1 };
        let backends: Vec<_> = (0..world).map(|_| CpuBackend::new(options).expect("arenas")).collect();
        let listeners: Vec<_> =
            (0..world).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let peers: Vec<_> =
            listeners.iter().map(|l| l.local_addr().expect("its address").to_string()).collect();
        let ranks: Vec<_> = (listeners.into_iter().enumerate())
            .map(|(rank, listener)| TcpOptions {
                listener,
                peers: peers.clone(),
                rank,
                generation: 1,
                token: b"token".to_vec(),
                join_timeout: Duration::from_secs(60),
                timeout: Duration::from_secs(60),
            })
            .collect();
        let used = peak(|| {
            std::thread::scope(|scope| {
                for (backend, options) in backends.iter().zip(&ranks) {
                    scope.spawn(move || exchange(backend, options).expect("exchange"));
                }
            });
        });
        // Above: threads, and what a connection takes. Below: all ranks have their pieces at once.
        let said = world * CpuComm::working_bytes(world);
        assert!(used <= said + 64 * 1024, "{world} ranks used {used} bytes of {said}");
        assert!(used >= world * world * (CpuComm::working_bytes(world) / (world + 1)), "{used} of {said}");
    }
}
