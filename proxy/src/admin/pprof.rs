//! `/debug/pprof`: where processor time and memory go, as profiles that `go tool pprof` reads.

use std::time::Duration;

use admin_http::{Answer, Asked, Reply, bytes, text};
use http::{Method, StatusCode};
use jemalloc_pprof::PROF_CTL;
use tokio::sync::oneshot;

use super::profile;

/// How long processor time is looked at.
const SECONDS: std::ops::RangeInclusive<u64> = 1..=300;
/// How often in a second.
const FREQUENCIES: std::ops::RangeInclusive<u64> = 1..=1000;
/// With this in the environment, jemalloc can be told to note who allocates.
const HOW: &str = "_RJEM_MALLOC_CONF=prof:true,prof_active:false,lg_prof_sample:19";

/// Answers what begins with `/debug/pprof/`.
pub(super) fn answer(asked: &Asked<'_>) -> Option<Reply> {
    let parameter = |name: &str| asked.query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str, default: u64, range: &std::ops::RangeInclusive<u64>| {
        let given = parameter(name).map_or(Ok(default), str::parse);
        let given = given.ok().filter(|n| range.contains(n));
        given.ok_or_else(|| format!("{name} is a number from {} to {}\n", range.start(), range.end()))
    };
    let get = |reply: Reply| match asked.method {
        &Method::GET => reply,
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "it takes a GET\n").into(),
    };
    Some(match asked.path {
        "/debug/pprof/profile" => match (number("seconds", 10, &SECONDS), number("frequency", 100, &FREQUENCIES)) {
            (Ok(seconds), Ok(frequency)) => get(Reply::later(processor(Duration::from_secs(seconds), frequency))),
            (Err(why), _) | (_, Err(why)) => text(StatusCode::BAD_REQUEST, why).into(),
        },
        "/debug/pprof/heap" => get(Reply::later(heap())),
        "/debug/pprof/heap/profiling" if asked.method != Method::POST => {
            text(StatusCode::METHOD_NOT_ALLOWED, "it takes a POST: …/profiling?activate=true\n").into()
        }
        "/debug/pprof/heap/profiling" => match parameter("activate") {
            None | Some("" | "true") => Reply::later(note_allocations(true)),
            Some("false") => Reply::later(note_allocations(false)),
            Some(_) => text(StatusCode::BAD_REQUEST, "activate is true or false\n").into(),
        },
        _ => return None,
    })
}

/// Looks at all threads, from a thread of its own: what was seen is put together for a while.
async fn processor(time: Duration, frequency: u64) -> Answer {
    let (done, profile) = oneshot::channel();
    let started = std::thread::Builder::new().name("profile".to_owned()).spawn(move || {
        let _ = done.send(profile::of_processor(time, frequency)); // whoever asked has gone
    });
    if let Err(e) = started {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("no thread for it: {e}\n"));
    }
    match profile.await {
        Ok(Ok(encoded)) => bytes("application/octet-stream", encoded),
        Ok(Err(e)) => text(StatusCode::CONFLICT, format!("{e}\n")),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the profile was not finished\n"),
    }
}

fn not_possible() -> Answer {
    text(StatusCode::NOT_IMPLEMENTED, format!("allocations cannot be noted. Next step: start the proxy with {HOW}\n"))
}

async fn note_allocations(wanted: bool) -> Answer {
    let Some(control) = PROF_CTL.as_ref() else { return not_possible() };
    let mut control = control.lock().await;
    let done = if wanted { control.activate() } else { control.deactivate() };
    match done {
        Ok(()) => text(StatusCode::OK, format!("allocations are noted: {wanted}\n")),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

async fn heap() -> Answer {
    let Some(control) = PROF_CTL.as_ref() else { return not_possible() };
    let mut control = control.lock().await;
    if !control.activated() {
        let next = "Next step: POST /debug/pprof/heap/profiling?activate=true, and wait for a while";
        return text(StatusCode::CONFLICT, format!("allocations are not noted. {next}\n"));
    }
    match control.dump_pprof() {
        Ok(encoded) => bytes("application/octet-stream", encoded),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e:#}\n")),
    }
}
