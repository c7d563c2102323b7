//! The network block device protocol, fixed newstyle, as `doc/proto.md` of NetworkBlockDevice/nbd has it.
//!
//! [`handshake`], [`request`] and [`reply`] are pure: bytes in, values or bytes out. [`server`] and [`client`] read and write.
//!
//! Invariants:
//! - every number that the other side sends is bounded before anything is allocated or computed with it;
//! - who breaks the protocol gets an error, or is cut off; no input panics.

pub mod client;
pub mod export;
pub mod handshake;
pub mod reply;
pub mod request;
pub mod server;
mod wire;

#[cfg(test)]
mod tests;

pub use client::{Client, ClientError, Writer};
pub use export::{Allocation, Export, Piece, Status};
pub use handshake::ExportInfo;
pub use reply::Failure;
pub use server::{ServeError, serve};
pub use wire::{MAX_PAYLOAD_BYTES, Malformed};
