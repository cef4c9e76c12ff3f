//! Logs: one JSON object a line on stderr. Nothing that is logged holds a credential.

use tracing_subscriber::EnvFilter;

use crate::env;

/// Starts logging; a second call changes nothing.
pub fn init() {
    // The client library tells every retry at info; an outage is told once, by us.
    let default = "info,object_store=warn";
    let filter = env::get(env::LOG).unwrap_or_else(|| default.to_owned());
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt().json().with_writer(std::io::stderr).with_env_filter(filter);
    // Fails when a subscriber is set already, which then stays.
    let _ = subscriber.try_init();
}
