//! The way to the coordinator: a call in this process for its own pod, gRPC for the others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context as _;
use longstrap_crds::TaskFile;
use longstrap_proto::v1alpha1 as proto;
use longstrap_runtime::StepResult;
use proto::rendezvous_client::RendezvousClient;
use proto::rendezvous_server::{Rendezvous, RendezvousServer};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::coordinator::Coordinator;
use crate::message::{Order, PodReport};
use crate::wire;

/// One call may take this long.
const CALL: Duration = Duration::from_secs(5);

/// The coordinator, shared by its own loop and the server.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Coordinator>>);

impl Shared {
    pub(crate) fn new(coordinator: Coordinator) -> Self {
        Self(Arc::new(Mutex::new(coordinator)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Coordinator> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Who belongs together: a stranger on a re-used address is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Party {
    run_uid: String,
    step: String,
    attempt: u32,
}

impl Party {
    pub(crate) fn of(task: &TaskFile) -> Self {
        Self { run_uid: task.owner.uid.clone(), step: task.step.to_string(), attempt: task.attempt }
    }

    fn member(&self, report: &PodReport) -> proto::Member {
        proto::Member {
            run_uid: self.run_uid.clone(),
            step: self.step.clone(),
            attempt: self.attempt,
            index: report.index,
            pod_uid: report.pod_uid.clone(),
        }
    }

    fn admit(&self, member: &proto::Member) -> Result<(), String> {
        let other =
            Self { run_uid: member.run_uid.clone(), step: member.step.clone(), attempt: member.attempt };
        match other == *self {
            true => Ok(()),
            false => Err(format!("this is {self:?}; {other:?} is a stranger")),
        }
    }
}

struct Service {
    party: Party,
    coordinator: Shared,
}

#[tonic::async_trait]
impl Rendezvous for Service {
    async fn sync(&self, request: Request<proto::MemberReport>) -> Result<Response<proto::Order>, Status> {
        let report = request.into_inner();
        let member = report.member.clone().unwrap_or_default();
        self.party.admit(&member).map_err(Status::permission_denied)?;
        let report = wire::report_from_wire(report).map_err(Status::invalid_argument)?;
        let order = self.coordinator.lock().report(Instant::now(), report);
        order.map(|order| Response::new(wire::order_to_wire(order))).map_err(Status::permission_denied)
    }
}

/// Serves the coordinator to the other pods until the process ends.
pub(crate) async fn serve(coordinator: Shared, party: Party, port: u16) -> StepResult {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .await
        .with_context(|| format!("cannot serve the rendezvous on port {port}"))?;
    let service = RendezvousServer::new(Service { party, coordinator });
    let server = Server::builder().add_service(service);
    tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming(TcpIncoming::from(listener)).await {
            tracing::error!(%error, "the rendezvous is no longer served");
        }
    });
    Ok(())
}

/// The way from one pod to its coordinator.
pub(crate) enum Way {
    /// The coordinator lives here.
    Here(Shared),
    /// It lives in the pod of index 0.
    There(Box<Remote>),
}

/// A coordinator in another pod.
pub(crate) struct Remote {
    party: Party,
    address: String,
    /// Dropped after an error: the next one looks the name up again.
    client: Option<RendezvousClient<Channel>>,
}

impl Way {
    pub(crate) fn there(task: &TaskFile) -> Self {
        let address = format!("{}:{}", task.rendezvous_host, task.ports.rendezvous);
        Self::There(Box::new(Remote { party: Party::of(task), address, client: None }))
    }

    /// Tells the coordinator; its answer, or why there is none.
    pub(crate) async fn sync(&mut self, report: PodReport) -> Result<Order, String> {
        match self {
            Self::Here(coordinator) => coordinator.lock().report(Instant::now(), report),
            Self::There(remote) => {
                let result = remote.call(report).await;
                if result.is_err() {
                    remote.client = None;
                }
                result.map_err(|why| format!("the agent of pod 0 at {}: {why}", remote.address))
            }
        }
    }
}

impl Remote {
    async fn call(&mut self, report: PodReport) -> Result<Order, String> {
        let client = match &mut self.client {
            Some(client) => client,
            None => {
                let endpoint =
                    Endpoint::from_shared(format!("http://{}", self.address)).map_err(|e| e.to_string())?;
                let endpoint = endpoint.connect_timeout(CALL).timeout(CALL);
                let channel = endpoint.connect().await.map_err(|e| format!("no connection ({e})"))?;
                self.client.insert(RendezvousClient::new(channel))
            }
        };
        let message = wire::report_to_wire(self.party.member(&report), &report);
        let answer = client.sync(message).await.map_err(|status| status.message().to_owned())?;
        wire::order_from_wire(answer.into_inner())
    }
}

/// The address under which the other pods reach this one: the one that it would speak to pod 0
/// from. No packet is sent.
pub(crate) fn own_address(task: &TaskFile) -> StepResult<IpAddr> {
    if task.workers == 1 {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let find = || {
        let mut found = (task.rendezvous_host.as_str(), task.ports.rendezvous).to_socket_addrs()?;
        let there = found.next().ok_or(std::io::ErrorKind::NotFound)?;
        let unspecified: IpAddr = match there {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((unspecified, 0))?;
        socket.connect(there)?;
        socket.local_addr()
    };
    let address = find().with_context(|| format!("cannot find pod 0 at {}", task.rendezvous_host))?;
    Ok(address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::Settings;
    use crate::message::PodState;

    #[tokio::test]
    async fn strangers_on_a_re_used_address_are_refused_with_both_names() {
        let settings = Settings {
            pods: 2,
            ranks_per_pod: 1,
            backoff_limit: 1,
            join_timeout: Duration::from_secs(60),
            silence: Duration::from_secs(60),
        };
        let coordinator = Shared::new(Coordinator::new(settings, Instant::now()));
        let party =
            |uid: &str, step: &str, attempt| Party { run_uid: uid.into(), step: step.into(), attempt };
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        serve(coordinator, party("ours", "train-0", 2), port).await.unwrap();
        let report = PodReport {
            index: 1,
            pod_uid: "pod".into(),
            state: PodState::Joining { addresses: vec!["127.0.0.1:1".into()] },
            leaving: false,
        };
        let address = format!("127.0.0.1:{port}");
        for (party, admitted) in [
            (party("ours", "train-0", 2), true),
            (party("theirs", "train-0", 2), false),
            (party("ours", "train-1", 2), false),
            (party("ours", "train-0", 1), false),
        ] {
            let says = format!("{party:?} is a stranger");
            let mut way = Way::There(Box::new(Remote { party, address: address.clone(), client: None }));
            match way.sync(report.clone()).await {
                Ok(order) => assert!(admitted && order == Order::Wait, "{order:?}"),
                Err(why) => assert!(!admitted && why.contains(&says) && why.contains(&address), "{why}"),
            }
        }
    }
}
