//! The trace "Simple 1-RTT Handshake" of RFC 8448, section 3, from the end of its handshake on.

use super::{receive, take};
use crate::{Direction, Event, RecordLayer, RecordState, Role, Suite, TrafficSecret};

const CLIENT_SECRET: &str = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
const SERVER_SECRET: &str = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";
const TICKET: &str = concat!(
    "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d6af8f6b580dcf3d11d63c7",
    "58db289a015940252f55713e061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca7f2b9fa1",
    "b6c0d4a3d03f75e09c30ba1e62972ac46f75f7b981be63439b2999ce13064615139891d5e4c5b406f16e3fc1",
    "81a77ca475840025db2f0a77f81b5ab05b94c01346755f69232c86519d86cbeeac87aac347d143f9605d64f6",
    "50db4d023e70e952ca49fe5137121c74bc2697687e248746d6df353005f3bce18696129c8153556b3b6c6779",
    "b37bf15985684f",
);
const CLIENT_DATA: &str = concat!(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a",
    "20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4",
);
const SERVER_DATA: &str = concat!(
    "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb",
    "501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d",
);

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}

fn layer(role: Role, tx: &str, rx: &str, sent: u64) -> RecordLayer {
    let tx = Direction::new(TrafficSecret::new(&bytes(tx)), sent);
    let rx = Direction::new(TrafficSecret::new(&bytes(rx)), 0);
    let state = RecordState::new(Suite::Aes128GcmSha256, role, tx, rx);
    state.thaw().unwrap()
}

fn data() -> Vec<u8> {
    (0..50).collect()
}

#[test]
fn keys_and_ivs_are_those_of_the_trace() {
    for (secret, key, iv) in [
        (
            CLIENT_SECRET,
            "17422dda596ed5d9acd890e3c63f5051",
            "5b78923dee08579033e523d9",
        ),
        (
            SERVER_SECRET,
            "9f02283b6c9c07efc26bb9f2ac92e356",
            "cf782b88dd83549aadf1e984",
        ),
    ] {
        let secret = TrafficSecret::new(&bytes(secret));
        let suite = Suite::Aes128GcmSha256;
        assert_eq!(*secret.expand(suite, b"key", 16), bytes(key));
        assert_eq!(*secret.expand(suite, b"iv", 12), bytes(iv));
    }
}

#[test]
fn the_client_of_the_trace_skips_the_ticket_and_seals_the_same_records() {
    let mut client = layer(Role::Client, CLIENT_SECRET, SERVER_SECRET, 0);
    let ticket = receive(&mut client, &bytes(TICKET)).unwrap();
    assert_eq!(ticket, (Vec::new(), Event::NeedMore));
    client.seal(&data()).unwrap();
    assert_eq!(take(client.outgoing()), bytes(CLIENT_DATA));
    let answer = receive(&mut client, &bytes(SERVER_DATA)).unwrap();
    assert_eq!(answer, (data(), Event::NeedMore));
}

#[test]
fn the_server_of_the_trace_seals_the_same_record_after_its_ticket() {
    let mut server = layer(Role::Server, SERVER_SECRET, CLIENT_SECRET, 1);
    let (request, _) = receive(&mut server, &bytes(CLIENT_DATA)).unwrap();
    assert_eq!(request, data());
    server.seal(&data()).unwrap();
    assert_eq!(take(server.outgoing()), bytes(SERVER_DATA));
}
