//! Messages of the rendezvous, to and from checked types.

use longstrap_crds::ExitCode;
use longstrap_proto::v1alpha1 as proto;
use proto::member_report::State;

use crate::message::{Exit, Gang, Order, Outcome, PodReport, PodState};

/// A report as it travels; `member` holds whose it is.
pub(crate) fn report_to_wire(member: proto::Member, report: &PodReport) -> proto::MemberReport {
    let state = match &report.state {
        PodState::Joining { addresses } => State::Joining(proto::Joining { addresses: addresses.clone() }),
        PodState::Running { generation } => State::Running(proto::Running { generation: *generation }),
        PodState::Stopped { generation, outcome } => {
            let exit = Some(exit_to_wire(exit_of(outcome)));
            State::Stopped(proto::Stopped { generation: *generation, exit })
        }
    };
    proto::MemberReport { member: Some(member), state: Some(state), leaving: report.leaving }
}

/// The report of a member that was checked.
///
/// # Errors
/// What is missing.
pub(crate) fn report_from_wire(report: proto::MemberReport) -> Result<PodReport, String> {
    let member = report.member.ok_or("member is missing")?;
    let state = match report.state.ok_or("state is missing")? {
        State::Joining(joining) => PodState::Joining { addresses: joining.addresses },
        State::Running(running) => PodState::Running { generation: running.generation },
        State::Stopped(proto::Stopped { generation, exit }) => {
            let exit = exit_from_wire(exit.ok_or("exit is missing")?);
            PodState::Stopped { generation, outcome: outcome_of(exit) }
        }
    };
    Ok(PodReport { index: member.index, pod_uid: member.pod_uid, state, leaving: report.leaving })
}

pub(crate) fn order_to_wire(order: Order) -> proto::Order {
    use proto::order::Order as Wire;
    let order = match order {
        Order::Wait => Wire::Wait(proto::Wait {}),
        Order::Start(Gang { generation, peers, token, resume }) => {
            Wire::Start(proto::Gang { generation, peers, token, resume: resume.unwrap_or_default() })
        }
        Order::Stop { generation, save } => Wire::Stop(proto::Stop { generation, save }),
        Order::Exit(exit) => Wire::Exit(exit_to_wire(exit)),
    };
    proto::Order { order: Some(order) }
}

/// # Errors
/// What is missing.
pub(crate) fn order_from_wire(order: proto::Order) -> Result<Order, String> {
    use proto::order::Order as Wire;
    Ok(match order.order.ok_or("order is missing")? {
        Wire::Wait(proto::Wait {}) => Order::Wait,
        Wire::Start(proto::Gang { generation, peers, token, resume }) => {
            let resume = Some(resume).filter(|key| !key.is_empty());
            Order::Start(Gang { generation, peers, token, resume })
        }
        Wire::Stop(proto::Stop { generation, save }) => Order::Stop { generation, save },
        Wire::Exit(exit) => Order::Exit(exit_from_wire(exit)),
    })
}

fn exit_to_wire(Exit { code, reason, message }: Exit) -> proto::Exit {
    let reason = reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default();
    proto::Exit { code: code.code(), reason, message }
}

fn exit_from_wire(proto::Exit { code, reason, message }: proto::Exit) -> Exit {
    Exit { code: ExitCode::from_code(code), reason: reason.parse().ok(), message }
}

/// The exit code that says how the ranks of a pod ended.
fn exit_of(outcome: &Outcome) -> Exit {
    match outcome {
        Outcome::Done => Exit::new(ExitCode::Committed, ""),
        Outcome::Stopped => Exit::new(ExitCode::Stopped, ""),
        Outcome::Failed(message) => Exit::new(ExitCode::Failed, message),
        Outcome::Hopeless(exit) => exit.clone(),
    }
}

fn outcome_of(exit: Exit) -> Outcome {
    match exit.code {
        ExitCode::Committed => Outcome::Done,
        ExitCode::Stopped => Outcome::Stopped,
        ExitCode::Invalid | ExitCode::Outage => Outcome::Hopeless(exit),
        _ => Outcome::Failed(exit.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longstrap_crds::Reason;

    #[test]
    fn what_is_sent_is_what_arrives() {
        let exit = |code, reason| Exit { code, reason, message: "why".into() };
        let hopeless = |code, reason| Outcome::Hopeless(exit(code, Some(reason)));
        let stopped = |outcome| PodState::Stopped { generation: 3, outcome };
        for state in [
            PodState::Joining { addresses: vec!["a:1".into(), "b:2".into()] },
            PodState::Running { generation: 7 },
            stopped(Outcome::Done),
            stopped(Outcome::Stopped),
            stopped(Outcome::Failed("rank 1 exited with 1".into())),
            stopped(hopeless(ExitCode::Invalid, Reason::DoesNotFit)),
            stopped(hopeless(ExitCode::Outage, Reason::StorageUnavailable)),
        ] {
            let report = PodReport { index: 2, pod_uid: "uid".into(), state, leaving: true };
            let member = proto::Member { index: 2, pod_uid: "uid".into(), ..proto::Member::default() };
            assert_eq!(report_from_wire(report_to_wire(member, &report)), Ok(report));
        }
        let gang = |resume| Gang { generation: 4, peers: vec!["a:1".into()], token: "t".into(), resume };
        for order in [
            Order::Wait,
            Order::Start(gang(None)),
            Order::Start(gang(Some("ckpt/3/40".into()))),
            Order::Stop { generation: 4, save: true },
            Order::Exit(exit(ExitCode::Committed, None)),
            Order::Exit(exit(ExitCode::Exhausted, Some(Reason::BackoffLimitExceeded))),
        ] {
            assert_eq!(order_from_wire(order_to_wire(order.clone())), Ok(order));
        }
    }
}
