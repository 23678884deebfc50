//! Certificates of peers and authorities, and revocation lists, as decoded by the proxy.
#![no_main]

use identity::decode;
use libfuzzer_sys::fuzz_target;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

fuzz_target!(|data: &[u8]| {
    let certificate = CertificateDer::from(data);
    if let Ok(parsed) = EndEntityCert::try_from(&certificate) {
        let _ = decode::identity_of(&parsed);
    }
    if let Ok(validity) = decode::Validity::of(&certificate) {
        let _ = validity.renew_at();
    }
    let _ = decode::parse_crls(data);
});
