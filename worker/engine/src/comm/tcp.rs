//! Ranks as processes: one TCP connection between every two of them.
//!
//! Invariant: a connection carries frames only after both sides agreed on token, generation, world
//! size and each other's rank. Sending has a thread of its own in each exchange, so two ranks that
//! send to each other at once both go on.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::frame::{self, Broken, Header};
use super::link::{Link, Side};
use super::{Peer, Tag};
use crate::{Error, Result};

/// First bytes of a greeting.
const MAGIC: &[u8; 8] = b"LSTHELO1";
/// A greeting must come within this time, so that a stranger cannot hold up the gang.
const GREETING: Duration = Duration::from_secs(5);
/// Pause between two attempts to reach a peer that does not listen yet.
const RETRY: Duration = Duration::from_millis(20);

/// How a rank finds the others.
pub struct TcpOptions {
    /// Bound already; peers of higher rank connect here.
    pub listener: TcpListener,
    /// `host:port` of every rank in order (this rank's own is not used); resolved at each attempt.
    pub peers: Vec<String>,
    /// This rank.
    pub rank: Peer,
    /// Generation of the gang.
    pub generation: u64,
    /// Secret of the gang's rendezvous, at most 255 bytes: who does not have it is refused.
    pub token: Vec<u8>,
    /// How long all peers may take to come.
    pub join_timeout: Duration,
    /// How long a peer may be silent inside a collective.
    pub timeout: Duration,
}

/// One rank's connections.
pub(crate) struct TcpLink {
    rank: Peer,
    generation: u64,
    timeout: Duration,
    peers: Vec<Option<TcpStream>>,
}

impl TcpLink {
    /// Connects to all lower ranks and awaits all higher ones.
    pub(crate) fn join(options: &TcpOptions) -> Result<Self> {
        let (rank, world) = (options.rank, options.peers.len());
        if rank >= world {
            return Err(Error::Device(format!("rank {rank} is not one of a gang of {world}")));
        }
        let deadline = Instant::now() + options.join_timeout;
        let refused = AtomicBool::new(false);
        let (lower, higher) = std::thread::scope(|scope| {
            let higher = scope.spawn(|| accept(options, world, deadline, &refused));
            let lower: Result<Vec<_>> =
                (0..rank).map(|peer| connect(options, world, peer, deadline)).collect();
            refused.store(lower.is_err(), Ordering::Relaxed);
            (lower, higher.join())
        });
        let lower = lower?;
        let higher =
            higher.map_err(|_| Error::Device("the thread that awaits peers panicked".to_owned()))??;
        let peers: Vec<_> =
            lower.into_iter().map(Some).chain([None]).chain(higher.into_iter().map(Some)).collect();
        for stream in peers.iter().flatten() {
            let set = || -> io::Result<()> {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(options.timeout))?;
                stream.set_write_timeout(Some(options.timeout))
            };
            set().map_err(|e| Error::Device(format!("cannot set up a connection: {e}")))?;
        }
        Ok(Self { rank, generation: options.generation, timeout: options.timeout, peers })
    }

    fn lost(&self, peer: Peer, why: impl Into<String>) -> Error {
        Error::PeerLost { rank: self.rank, peer, why: why.into() }
    }

    fn stream(&self, peer: Peer) -> Result<&TcpStream> {
        self.peers[peer].as_ref().ok_or_else(|| self.lost(peer, "it is this rank itself"))
    }

    fn io(&self, peer: Peer, error: &io::Error) -> Error {
        let why = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("no byte moved for {:?}", self.timeout)
            }
            io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => error.to_string(),
        };
        self.lost(peer, why)
    }

    fn header(&self, sender: Peer, tag: Tag, side: &Side<'_>) -> Header {
        // A gang has far fewer than 2³² ranks.
        Header { generation: self.generation, sender: sender as u32, tag, length: side.bytes() as u64 }
    }
}

impl Link for TcpLink {
    fn rank(&self) -> Peer {
        self.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn exchange(&self, tag: Tag, send: &Side<'_>, recv: &Side<'_>) -> Result<()> {
        let (out, from) = (self.stream(send.peer)?, self.stream(recv.peer)?);
        let header = self.header(self.rank, tag, send);
        let expected = self.header(recv.peer, tag, recv);
        let (sent, received) = std::thread::scope(|scope| {
            let sent = scope.spawn(|| frame::write(out, header, send));
            // The frame is read to its last byte and no further: frames of a connection come one
            // exchange at a time, but the next may already be there.
            let bytes = frame::FRAME_OVERHEAD + recv.bytes() as u64;
            let received = frame::read(from.take(bytes), expected, recv);
            if received.is_err() {
                // Or the writer would wait for a peer that has given up.
                self.close();
            }
            (sent.join(), received)
        });
        received.map_err(|broken| match broken {
            Broken::Io(error) => self.io(recv.peer, &error),
            Broken::Damaged(why) => self.lost(recv.peer, why),
            Broken::Other(got) => Error::OutOfStep {
                rank: self.rank,
                peer: recv.peer,
                expected: expected.to_string(),
                got: got.to_string(),
            },
        })?;
        match sent {
            Ok(sent) => sent.map_err(|error| self.io(send.peer, &error)),
            Err(_) => Err(self.lost(send.peer, "the sending thread panicked")),
        }
    }

    fn close(&self) {
        for stream in self.peers.iter().flatten() {
            // A connection that is gone already is as closed as can be.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What a rank says of itself when it connects.
struct Greeting {
    generation: u64,
    world: u64,
    rank: u64,
    token: Vec<u8>,
}

impl Greeting {
    fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut out = MAGIC.to_vec();
        for field in [self.generation, self.world, self.rank] {
            out.extend(field.to_le_bytes());
        }
        out.push(
            u8::try_from(self.token.len()).map_err(|_| io::Error::other("token longer than 255 bytes"))?,
        );
        out.extend(&self.token);
        to.write_all(&out)
    }

    fn read(mut from: impl Read) -> io::Result<Self> {
        let mut magic = [0; 8];
        from.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(io::Error::other("not a rank of a gang"));
        }
        let mut field = || {
            let mut bytes = [0; 8];
            from.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
        };
        let (generation, world, rank) = (field()?, field()?, field()?);
        let mut length = [0];
        from.read_exact(&mut length)?;
        let mut token = vec![0; usize::from(length[0])];
        from.read_exact(&mut token)?;
        Ok(Self { generation, world, rank, token })
    }
}

/// Compares every byte, so that time tells nothing about where two tokens differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

/// Reaches one lower rank.
fn connect(options: &TcpOptions, world: usize, peer: Peer, deadline: Instant) -> Result<TcpStream> {
    let rank = options.rank;
    let address = &options.peers[peer];
    let lost = |why: String| Error::PeerLost { rank, peer, why };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let attempt = address.to_socket_addrs().and_then(|found| reach(found, left));
        match attempt {
            Ok(stream) => {
                return greet(options, world, &stream).map(|()| stream).map_err(|why| {
                    lost(format!(
                        "at {address}, greeted by rank {rank} of {world}, generation {}: {why}",
                        options.generation
                    ))
                });
            }
            Err(error) if left.is_zero() => {
                return Err(lost(format!(
                    "cannot reach it at {address} within {:?}: {error}",
                    options.join_timeout
                )));
            }
            Err(_) => std::thread::sleep(RETRY.min(left)),
        }
    }
}

/// The first of a name's addresses that answers.
fn reach(addresses: impl Iterator<Item = SocketAddr>, limit: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, limit.max(Duration::from_millis(1))) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Says who we are and reads the answer.
fn greet(options: &TcpOptions, world: usize, mut stream: &TcpStream) -> std::result::Result<(), String> {
    let greeting = Greeting {
        generation: options.generation,
        world: world as u64,
        rank: options.rank as u64,
        token: options.token.clone(),
    };
    let mut answer = [0; 3];
    let mut talk = |answer: &mut [u8; 3]| -> io::Result<()> {
        stream.set_read_timeout(Some(options.join_timeout.max(GREETING)))?;
        greeting.write(stream)?;
        (&mut stream).read_exact(answer)
    };
    talk(&mut answer).map_err(|e| format!("no answer to the greeting: {e}"))?;
    let length = usize::from(u16::from_le_bytes([answer[1], answer[2]]));
    if answer[0] == 0 {
        return Ok(());
    }
    let mut why = vec![0; length];
    stream.read_exact(&mut why).map_err(|e| format!("refused, and the reason was cut off: {e}"))?;
    Err(format!("refused: {}", String::from_utf8_lossy(&why)))
}

/// Awaits all higher ranks; strangers are refused and do not end the wait, `abandoned` does.
fn accept(
    options: &TcpOptions,
    world: usize,
    deadline: Instant,
    abandoned: &AtomicBool,
) -> Result<Vec<TcpStream>> {
    let rank = options.rank;
    let mut higher: Vec<Option<TcpStream>> = (rank + 1..world).map(|_| None).collect();
    let mut refused = String::new();
    let device = |e: io::Error| Error::Device(format!("rank {rank} cannot accept connections: {e}"));
    options.listener.set_nonblocking(true).map_err(device)?;
    while let Some(missing) = higher.iter().position(Option::is_none) {
        let left = deadline.saturating_duration_since(Instant::now());
        match options.listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false).map_err(device)?;
                match judge(options, world, &stream, left.min(GREETING)) {
                    // A rank that comes twice has lost its first connection.
                    Ok(peer) => higher[peer - rank - 1] = Some(stream),
                    Err(why) => refused = format!("; refused {from}: {why}"),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if left.is_zero() || abandoned.load(Ordering::Relaxed) {
                    let why = format!("it did not come within {:?}{refused}", options.join_timeout);
                    return Err(Error::PeerLost { rank, peer: rank + 1 + missing, why });
                }
                std::thread::sleep(RETRY.min(left) / 4);
            }
            Err(e) => return Err(device(e)),
        }
    }
    Ok(higher.into_iter().flatten().collect())
}

/// Reads a greeting and answers it; the rank of who may stay.
fn judge(
    options: &TcpOptions,
    world: usize,
    mut stream: &TcpStream,
    limit: Duration,
) -> std::result::Result<Peer, String> {
    let read = stream
        .set_read_timeout(Some(limit.max(Duration::from_millis(1))))
        .and_then(|()| Greeting::read(stream))
        .map_err(|e| format!("no greeting: {e}"));
    let verdict = read.and_then(|greeting| {
        let us = format!("this is rank {} of {world}, generation {}", options.rank, options.generation);
        let them =
            format!("rank {} of {}, generation {}", greeting.rank, greeting.world, greeting.generation);
        if !same(&greeting.token, &options.token) {
            Err(format!("the token differs; {us}, greeted by {them}"))
        } else if greeting.generation != options.generation || greeting.world != world as u64 {
            Err(format!("{us}, greeted by {them}"))
        } else {
            usize::try_from(greeting.rank)
                .ok()
                .filter(|peer| *peer > options.rank && *peer < world)
                .ok_or_else(|| format!("only higher ranks connect; {us}, greeted by {them}"))
        }
    });
    let answer = match &verdict {
        Ok(_) => vec![0; 3],
        Err(why) => {
            let why = &why.as_bytes()[..why.len().min(1000)];
            [&[1][..], &(why.len() as u16).to_le_bytes(), why].concat()
        }
    };
    stream.write_all(&answer).map_err(|e| format!("the answer to its greeting failed: {e}"))?;
    verdict
}
