//! Certificates of peers and authorities, and lists of revoked ones, as the proxy decodes them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

#[allow(dead_code)]
#[path = "../../proxy/src/identity/decode.rs"]
mod decode;

fuzz_target!(|data: &[u8]| {
    let certificate = CertificateDer::from(data);
    if let Ok(parsed) = EndEntityCert::try_from(&certificate) {
        let _ = decode::identity_of(&parsed);
    }
    if let Ok(validity) = decode::Validity::of(&certificate) {
        let _ = validity.renew_at();
    }
    let _ = decode::lists(data);
});
