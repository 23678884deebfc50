//! Header blocks of one connection. A length byte precedes each.
#![no_main]

use connect_h2::hpack::{Decoder, Encoder, Field};
use libfuzzer_sys::fuzz_target;

type Fields = Vec<(Vec<u8>, Vec<u8>, bool)>;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Option<Fields> {
    let mut fields = Vec::new();
    let decoded = decoder.decode(block, |field| {
        fields.push((
            field.name.to_vec(),
            field.value.to_vec(),
            field.is_sensitive,
        ));
    });
    decoded.ok().map(|()| fields)
}

fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::new(4096);
    let (mut encoder, mut of_encoder) = (Encoder::default(), Decoder::new(0));
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first() {
        let (block, after) = after
            .split_at_checked(usize::from(*length))
            .unwrap_or((after, &[]));
        rest = after;
        let Some(fields) = decode(&mut decoder, block) else {
            return;
        };
        let mut encoded = Vec::new();
        let borrowed = fields.iter().map(|(name, value, is_sensitive)| Field {
            name,
            value,
            is_sensitive: *is_sensitive,
        });
        encoder.encode(&mut encoded, borrowed);
        assert_eq!(decode(&mut of_encoder, &encoded), Some(fields));
    }
});
