//! Deletes redirection without Underpass's knowledge, as a user of `nft` and `ip` could. Only for
//! the demo.

use futures_util::TryStreamExt;
use netns::NetNs;
use nft::{Batch, NftError, Socket};
use rtnetlink::IpVersion;
use rtnetlink::packet_route::rule::RuleAttribute;

/// Deletes the nf_tables table, in the network namespace of the calling thread.
pub(crate) fn table() -> Result<(), NftError> {
    let socket = Socket::open()?;
    let mut batch = Batch::new("underpass");
    batch.delete_table();
    batch.commit(&socket)
}

/// Deletes all ip rules except the kernel's defaults.
pub(crate) fn ip_rules(netns: &NetNs) -> anyhow::Result<()> {
    super::network::inside(netns, async |handle| {
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules: Vec<_> = handle.rule().get(version).execute().try_collect().await?;
            for rule in rules {
                // The kernel's defaults have priorities 0, 32766 and 32767.
                let is_custom = |a: &RuleAttribute| matches!(a, RuleAttribute::Priority(1..32_766));
                if rule.attributes.iter().any(is_custom) {
                    handle.rule().del(rule).execute().await?;
                }
            }
        }
        Ok(())
    })
}
