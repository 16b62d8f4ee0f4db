//! A server of HTTP/1 for callers who are not trusted: what a connection, a request and all of them together may take is
//! bounded ([`Limits`]), who may ask is checked before a byte of a body is kept ([`Access`]), and signals end it
//! with what was asked answered. What is answered is the caller's `axum::Router`.
//!
//! hyper reads and writes; its connections are driven here and not by `axum::serve` or hyper-util's `auto`, as
//! neither bounds connections, responses that nobody reads, or (`auto`) the wait for the first byte.

mod access;
mod body;
mod connections;
mod error;
mod key;
mod limits;
mod reply;
mod server;
mod stream;

pub use access::Access;
pub use error::WebError;
pub use key::Key;
pub use limits::Limits;
pub use reply::Reply;
pub use server::Server;
