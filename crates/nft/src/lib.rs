//! nf_tables over netlink: expressions, rules, chains, sets, atomic batches and dumps. Runs no program.
//!
//! Everything acts on the network namespace of the calling thread. Values that a [`Batch`] writes are read back by
//! [`dump_table`] as the same typed values, so that a caller can compare what should be with what is.

#![forbid(unsafe_code)]

mod attr;
mod batch;
mod dump;
mod expr;
mod object;
mod socket;

pub use batch::Batch;
pub use dump::{Dumped, Table, chain_names, dump_table, generation, jumps};
pub use expr::{Cmp, CtKey, Expr, Lookup, MetaKey, Payload, Verdict};
pub use object::{Chain, ChainKind, ChainName, Family, Hook, Jump, Rule, Set, SetKey};
pub use socket::{NftError, Socket};
