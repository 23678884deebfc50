//! nf_tables over netlink: expressions, rules, chains, sets, atomic batches and dumps. Does not
//! run any program.
//!
//! All operations act on the network namespace of the calling thread. [`dump_table`] returns the
//! same types that a [`Batch`] writes, so callers can compare desired and actual state directly.

#![forbid(unsafe_code)]

mod attr;
mod batch;
mod codec;
mod conntrack;
mod display;
mod dump;
mod effect;
mod expr;
mod field;
pub mod netlink;
mod object;
mod set;
mod socket;

pub use batch::Batch;
pub use conntrack::{TrackedConnection, tracked_connection};
pub use dump::{Chains, ObjectKind, dump_table, dump_table_with, generation, jumps, table_exists};
pub use effect::{
    EffectiveChain, OwnObjects, PacketEffect, destination_port, effective_chains, target_effect,
};
pub use expr::{Cmp, Expr, Verdict};
pub use field::Field;
pub use object::{Chain, ChainKind, ChainName, Family, Hook, IpFamily, Jump, Rule, Table, octets};
pub use set::{Element, Set, SetKey};
pub use socket::{NftError, Socket};
