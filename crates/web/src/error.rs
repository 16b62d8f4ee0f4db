//! Why nothing is served.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

/// An error of the server; what is wrong with a request is answered, and is none.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WebError {
    /// The address cannot be had.
    #[error("{address}: {source}")]
    Bind {
        /// As it was given.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The system gives no threads.
    #[error("cannot start the server's threads: {0}")]
    Threads(io::Error),
    /// Others could ask, and nobody would be asked who they are.
    #[error(
        "{0} is open to other machines, and there is no key\nhint: --api_key_file FILE (or VLM_R1_API_KEY), or \
         --allow_no_key true in a network that you trust"
    )]
    NoKey(SocketAddr),
    /// The key cannot be used.
    #[error("API key, `{place}`: {reason}")]
    Key {
        /// The file, or the variable of the environment.
        place: String,
        /// Why.
        reason: String,
    },
    /// A host that may be named is none.
    #[error("allowed hosts: got `{0}`, expected a name without scheme and port, or `*`")]
    Host(String),
}
