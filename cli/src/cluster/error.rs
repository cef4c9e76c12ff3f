//! What an API server refuses, for the person who asked: what, where, what to do.

use kube::core::Status;

/// What was asked: `get synthesisjobs docs`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// As RBAC calls it.
    pub(crate) verb: &'static str,
    /// Plural and group, as RBAC calls it.
    pub(crate) resource: &'static str,
    /// The object; empty for a list.
    pub(crate) name: &'a str,
}

/// Why a command on a cluster cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// There is no way to a cluster.
    #[error(
        "no cluster is configured ({why}); name a kubeconfig with --kubeconfig or KUBECONFIG, and one of its contexts with --context"
    )]
    Unconfigured {
        /// The client's words.
        why: String,
    },
    /// The API server does not answer.
    #[error(
        "the API server {server} does not answer: {why}; check the address of the context and the network"
    )]
    Away {
        /// Its address.
        server: String,
        /// The client's words.
        why: String,
    },
    /// The credentials are not accepted.
    #[error(
        "the API server {server} does not accept the credentials ({why}); log in again, or choose another --context"
    )]
    Unauthorized {
        /// Its address.
        server: String,
        /// The server's words.
        why: String,
    },
    /// RBAC.
    #[error(
        "not allowed to {verb} {resource} in namespace {namespace} ({why}); ask for a role with that right"
    )]
    Forbidden {
        /// As RBAC calls it.
        verb: &'static str,
        /// Plural and group.
        resource: &'static str,
        /// Of the request.
        namespace: String,
        /// The server's words.
        why: String,
    },
    /// The CRDs are not there.
    #[error(
        "the cluster does not know {resource}; install the chart longstrap-crds, or choose another --context"
    )]
    UnknownKind {
        /// Plural and group.
        resource: &'static str,
    },
    /// There is no such object.
    #[error("there is no {what} in namespace {namespace}; {hint}")]
    NotFound {
        /// Kind and name.
        what: String,
        /// Where it was looked for.
        namespace: String,
        /// Where else to look.
        hint: String,
    },
    /// It is not any more what was looked at.
    #[error(
        "{name} of {resource} in namespace {namespace} has been changed meanwhile; look at it and try again"
    )]
    Changed {
        /// The object.
        name: String,
        /// Plural and group.
        resource: &'static str,
        /// Of the request.
        namespace: String,
    },
    /// Any other answer.
    #[error("cannot {verb} {resource} {name} in namespace {namespace}: {why}")]
    Refused {
        /// As RBAC calls it.
        verb: &'static str,
        /// Plural and group.
        resource: &'static str,
        /// The object; empty for a list.
        name: String,
        /// Of the request.
        namespace: String,
        /// The server's words.
        why: String,
    },
}

/// The answer to a request in words.
pub(crate) fn explain(
    request: Request<'_>,
    namespace: &str,
    server: &str,
    error: &kube::Error,
) -> ClusterError {
    let Request { verb, resource, name } = request;
    let (server, namespace) = (server.to_owned(), namespace.to_owned());
    match error {
        kube::Error::Api(status) => match status.code {
            401 => ClusterError::Unauthorized { server, why: words(status) },
            403 => ClusterError::Forbidden { verb, resource, namespace, why: words(status) },
            // The answer about an object names it; without, the path itself is unknown.
            404 if status.details.as_ref().is_none_or(|d| d.name.is_empty()) => {
                ClusterError::UnknownKind { resource }
            }
            404 => ClusterError::NotFound {
                what: format!("{name} of {resource}"),
                namespace,
                hint: "it may have been deleted meanwhile".to_owned(),
            },
            // Creating what is there is a 409 of another reason.
            409 if status.reason == "Conflict" => {
                ClusterError::Changed { name: name.to_owned(), resource, namespace }
            }
            _ => {
                ClusterError::Refused { verb, resource, name: name.to_owned(), namespace, why: words(status) }
            }
        },
        kube::Error::SerdeError(error) => ClusterError::Refused {
            verb,
            resource,
            name: name.to_owned(),
            namespace,
            why: format!("the answer cannot be read: {error}"),
        },
        other => ClusterError::Away { server, why: last_cause(other) },
    }
}

/// The server's words.
fn words(status: &Status) -> String {
    if status.message.is_empty() { format!("code {}", status.code) } else { status.message.clone() }
}

/// The innermost cause: the outer ones only say that a request failed.
fn last_cause(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        last = inner.to_string();
        cause = inner.source();
    }
    last
}

/// The innermost cause of an error of the client, for a line about a retry.
pub(crate) fn short(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => words(status),
        other => last_cause(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: u16, status: serde_json::Value) -> String {
        let mut status: Status = serde_json::from_value(status).unwrap();
        status.code = code;
        let request = Request { verb: "get", resource: "synthesisjobs.longstrap.io", name: "docs" };
        explain(request, "ml", "https://api", &kube::Error::Api(Box::new(status))).to_string()
    }

    #[test]
    fn answers_say_what_where_and_what_to_do() {
        let cases = [
            (
                401,
                serde_json::json!({"message": "Unauthorized"}),
                "the API server https://api does not accept the credentials (Unauthorized); log in again, or choose another --context",
            ),
            (
                403,
                serde_json::json!({"message": "User \"eve\" cannot get resource"}),
                "not allowed to get synthesisjobs.longstrap.io in namespace ml (User \"eve\" cannot get resource); ask for a role with that right",
            ),
            (
                404,
                serde_json::json!({"message": "404 page not found"}),
                "the cluster does not know synthesisjobs.longstrap.io; install the chart longstrap-crds, or choose another --context",
            ),
            (
                404,
                serde_json::json!({"message": "not found", "details": {"name": "docs"}}),
                "there is no docs of synthesisjobs.longstrap.io in namespace ml; it may have been deleted meanwhile",
            ),
            (
                409,
                serde_json::json!({"message": "the UID in the precondition …", "reason": "Conflict"}),
                "docs of synthesisjobs.longstrap.io in namespace ml has been changed meanwhile; look at it and try again",
            ),
            (
                409,
                serde_json::json!({"message": "object already exists", "reason": "AlreadyExists"}),
                "cannot get synthesisjobs.longstrap.io docs in namespace ml: object already exists",
            ),
            (
                422,
                serde_json::json!({"message": "spec.seed: cannot be changed"}),
                "cannot get synthesisjobs.longstrap.io docs in namespace ml: spec.seed: cannot be changed",
            ),
            (
                500,
                serde_json::json!({}),
                "cannot get synthesisjobs.longstrap.io docs in namespace ml: code 500",
            ),
        ];
        for (code, status, wanted) in cases {
            assert_eq!(told(code, status), wanted);
        }
    }

    #[test]
    fn a_server_that_is_away_is_told_by_its_innermost_cause() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = kube::Error::Service(Box::new(refused));
        let request = Request { verb: "get", resource: "synthesisjobs.longstrap.io", name: "docs" };
        assert_eq!(
            explain(request, "ml", "https://api", &error).to_string(),
            "the API server https://api does not answer: connection refused; check the address of the context and the network"
        );
    }
}
