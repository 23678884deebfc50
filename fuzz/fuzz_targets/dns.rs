//! DNS messages: a pod's query, and a name server's answer to it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|messages: (&[u8], &[u8])| dns::exercise_parsers(messages.0, messages.1));
