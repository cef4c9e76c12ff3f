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
            let (outcome, message, reason) = match outcome {
                Outcome::Done => (proto::Outcome::Done, "", None),
                Outcome::Stopped => (proto::Outcome::Stopped, "", None),
                Outcome::Failed(message) => (proto::Outcome::Failed, message.as_str(), None),
                Outcome::Hopeless(exit) => {
                    let outcome = match exit.code {
                        ExitCode::Invalid => proto::Outcome::Invalid,
                        _ => proto::Outcome::Outage,
                    };
                    (outcome, exit.message.as_str(), exit.reason)
                }
            };
            State::Stopped(proto::Stopped {
                generation: *generation,
                outcome: outcome.into(),
                message: message.to_owned(),
                reason: reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
            })
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
        State::Stopped(stopped) => {
            let reason = stopped.reason.parse().ok();
            let hopeless = |code| Outcome::Hopeless(Exit { code, reason, message: stopped.message.clone() });
            let outcome = match stopped.outcome() {
                proto::Outcome::Done => Outcome::Done,
                proto::Outcome::Stopped => Outcome::Stopped,
                proto::Outcome::Failed => Outcome::Failed(stopped.message.clone()),
                proto::Outcome::Invalid => hopeless(ExitCode::Invalid),
                proto::Outcome::Outage => hopeless(ExitCode::Outage),
                proto::Outcome::Unspecified => return Err("outcome is missing".to_owned()),
            };
            PodState::Stopped { generation: stopped.generation, outcome }
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
        Order::Exit(Exit { code, reason, message }) => Wire::Exit(proto::Exit {
            code: code.code(),
            reason: reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
            message,
        }),
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
        Wire::Exit(proto::Exit { code, reason, message }) => {
            Order::Exit(Exit { code: ExitCode::from_code(code), reason: reason.parse().ok(), message })
        }
    })
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
