//! Deleting redirection behind Underpass's back, as somebody with `nft` and `ip` might. Only the demo does that.

use futures_util::TryStreamExt;
use netns::NetNs;
use nft::{Batch, NftError, Socket};
use rtnetlink::IpVersion;
use rtnetlink::packet_route::rule::RuleAttribute;

/// Deletes the table, in the namespace of the calling thread.
pub(crate) fn table() -> Result<(), NftError> {
    let socket = Socket::open()?;
    let mut batch = Batch::new("underpass");
    batch.delete_table();
    batch.commit(&socket)
}

/// Deletes every ip rule that the kernel did not make.
pub(crate) fn ip_rules(netns: &NetNs) -> anyhow::Result<()> {
    super::network::inside(netns, async |handle| {
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules: Vec<_> = handle.rule().get(version).execute().try_collect().await?;
            for rule in rules {
                // The kernel's own are 0, 32766 and 32767.
                let ours = |a: &RuleAttribute| matches!(a, RuleAttribute::Priority(p) if (1..32_766).contains(p));
                if rule.attributes.iter().any(ours) {
                    handle.rule().del(rule).execute().await?;
                }
            }
        }
        Ok(())
    })
}
