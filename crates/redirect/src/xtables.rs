//! iptables rules in the text form of `iptables -S`, so that read-back can compare lines.

use nft::IpFamily;

/// Prefix of the names of Underpass's chains.
pub(crate) const PREFIX: &str = "UNDERPASS_";
/// The tables with Underpass chains.
pub(crate) const TABLES: [&str; 4] = ["raw", "mangle", "nat", "filter"];

/// Underpass's rules in one table of one family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct XtablesRules {
    /// The family.
    pub family: IpFamily,
    /// `raw`, `mangle`, `nat` or `filter`.
    pub table: String,
    /// `-A BUILTIN -j CHAIN`: the jumps to Underpass's chains, sorted.
    pub jumps: Vec<String>,
    /// `-A CHAIN …`: the rules of Underpass's chains, sorted by chain name.
    pub rules: Vec<String>,
}

impl XtablesRules {
    /// Selects the chains with a prefix, and the jumps to them, from the output of `iptables -S`.
    pub(crate) fn from_listing(
        family: IpFamily,
        table: &str,
        prefix: &str,
        lines: &[String],
    ) -> Self {
        let mut found = Self {
            family,
            table: table.to_owned(),
            jumps: Vec::new(),
            rules: Vec::new(),
        };
        for line in lines {
            let line = line.trim_end();
            match line.strip_prefix("-A ") {
                Some(rest) if rest.starts_with(prefix) => found.rules.push(line.to_owned()),
                Some(rest) if rest.contains(&format!("-j {prefix}")) => {
                    found.jumps.push(line.to_owned())
                }
                _ => {}
            }
        }
        found.jumps.sort();
        found.rules.sort_by(|a, b| chain(a).cmp(chain(b)));
        found
    }

    /// Whether both are the rules of the same table and family.
    pub(crate) fn same_table(&self, other: &Self) -> bool {
        (self.family, &self.table) == (other.family, &other.table)
    }

    /// Whether this table has no Underpass rules.
    pub fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.rules.is_empty()
    }

    /// Renders the input of a restore program: replaces Underpass's chains and adds the jumps that
    /// are not `present`.
    pub(crate) fn restore_input(&self, present: &[String]) -> String {
        let mut chains: Vec<&str> = self.rules.iter().map(|r| chain(r)).collect();
        chains.dedup();
        let declared = chains.iter().map(|c| format!(":{c} - [0:0]\n"));
        let jumps = self
            .jumps
            .iter()
            .filter(|j| !present.contains(j))
            .map(|j| format!("{}\n", j.replacen("-A", "-I", 1)));
        let rules = self.rules.iter().map(|r| format!("{r}\n"));
        format!(
            "*{}\n{}COMMIT\n",
            self.table,
            declared.chain(jumps).chain(rules).collect::<String>()
        )
    }
}

/// The name of the program for a family, without its variant.
pub(crate) fn program(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "iptables",
        IpFamily::V6 => "ip6tables",
    }
}

/// Returns the chain of a rule.
fn chain(rule: &str) -> &str {
    rule.split(' ').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: [&str; 7] = [
        "-P PREROUTING ACCEPT",
        "-N UNDERPASS_IN",
        "-A PREROUTING -j UNDERPASS_IN",
        "-A PREROUTING -j KUBE-SERVICES",
        "-A UNDERPASS_OUT -o lo -j RETURN",
        "-A UNDERPASS_IN -i lo -j RETURN ",
        "-A UNDERPASS_IN -p tcp -m tcp --dport 15008 -j RETURN",
    ];

    fn listed() -> XtablesRules {
        XtablesRules::from_listing(IpFamily::V4, "nat", PREFIX, &LISTING.map(str::to_owned))
    }

    #[test]
    fn only_the_chains_with_the_prefix_are_selected_from_a_listing() {
        let found = listed();
        assert_eq!(found.jumps, ["-A PREROUTING -j UNDERPASS_IN"]);
        let rules = [
            "-A UNDERPASS_IN -i lo -j RETURN",
            "-A UNDERPASS_IN -p tcp -m tcp --dport 15008 -j RETURN",
            "-A UNDERPASS_OUT -o lo -j RETURN",
        ];
        assert_eq!(found.rules, rules, "sorted by chain, in order within each");
        let other = LISTING[..4]
            .iter()
            .map(|l| l.replace("UNDERPASS_", "OTHER_"));
        let none =
            XtablesRules::from_listing(IpFamily::V4, "nat", PREFIX, &other.collect::<Vec<_>>());
        assert!(none.is_empty());
    }

    #[test]
    fn restore_input_replaces_chains_and_adds_only_missing_jumps() {
        let rules = listed();
        let chains = ":UNDERPASS_IN - [0:0]\n:UNDERPASS_OUT - [0:0]\n";
        let lines: String = rules.rules.iter().map(|r| format!("{r}\n")).collect();
        let jump = "-I PREROUTING -j UNDERPASS_IN\n";
        let input = rules.restore_input(&[]);
        assert_eq!(input, format!("*nat\n{chains}{jump}{lines}COMMIT\n"));
        let input = rules.restore_input(&rules.jumps);
        assert_eq!(input, format!("*nat\n{chains}{lines}COMMIT\n"));
    }
}
