//! `/debug/pprof`: CPU and heap profiles for `go tool pprof`.

use std::time::Duration;

use admin_http::{HttpRequest, HttpResponse, Reply, bad_request, bytes, method_not_allowed, text};
use http::{Method, StatusCode};
use jemalloc_pprof::PROF_CTL;
use tokio::sync::oneshot;

use super::profile;

/// Allowed durations of a CPU profile, in seconds.
const SECONDS: std::ops::RangeInclusive<u64> = 1..=300;
/// Allowed sampling frequencies of a CPU profile, in Hz.
const FREQUENCIES: std::ops::RangeInclusive<u64> = 1..=1000;
/// Environment variable that makes heap profiling available in jemalloc.
const HEAP_PROFILING_ENV: &str = "_RJEM_MALLOC_CONF=prof:true,prof_active:false,lg_prof_sample:19";

/// Responds to paths below `/debug/pprof/`; `None` for others.
pub(super) fn respond(request: &HttpRequest<'_>) -> Option<Reply> {
    let parameter = |name: &str| {
        request
            .query
            .split('&')
            .find_map(|p| p.strip_prefix(name)?.strip_prefix('='))
    };
    let number = |name: &str, default: u64, range: &std::ops::RangeInclusive<u64>| {
        let given = parameter(name).map_or(Ok(default), str::parse);
        let given = given.ok().filter(|n| range.contains(n));
        given.ok_or_else(|| {
            let (start, end) = (range.start(), range.end());
            format!("invalid {name}: expected a number from {start} to {end}")
        })
    };
    let get = |reply: Reply| match request.method {
        &Method::GET => reply,
        _ => method_not_allowed("GET").into(),
    };
    Some(match request.path {
        "/debug/pprof/profile" => match (
            number("seconds", 10, &SECONDS),
            number("frequency", 100, &FREQUENCIES),
        ) {
            (Ok(seconds), Ok(frequency)) => {
                get(Reply::later(cpu(Duration::from_secs(seconds), frequency)))
            }
            (Err(reason), _) | (_, Err(reason)) => bad_request(reason).into(),
        },
        "/debug/pprof/heap" => get(Reply::later(heap())),
        "/debug/pprof/heap/profiling" if request.method != Method::POST => {
            method_not_allowed("POST /debug/pprof/heap/profiling?activate=true").into()
        }
        "/debug/pprof/heap/profiling" => match parameter("activate") {
            None | Some("" | "true") => Reply::later(set_heap_profiling(true)),
            Some("false") => Reply::later(set_heap_profiling(false)),
            Some(_) => bad_request("invalid activate: expected true or false").into(),
        },
        _ => return None,
    })
}

/// Takes a CPU profile of all threads, on a thread of its own because building the report takes
/// long.
async fn cpu(time: Duration, frequency: u64) -> HttpResponse {
    let (sender, profile) = oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name("profile".to_owned())
        .spawn(move || {
            process::survive_panics(); // the client gets an error
            let _ = sender.send(profile::cpu(time, frequency)); // fails if the client disconnected
        });
    if let Err(e) = spawned {
        return text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot start the profiling thread: {e}\n"),
        );
    }
    match profile.await {
        Ok(Ok(encoded)) => bytes("application/octet-stream", encoded),
        Ok(Err(e)) => text(StatusCode::CONFLICT, format!("{e}\n")),
        Err(_) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the profiling thread failed\n",
        ),
    }
}

fn profiling_unavailable() -> HttpResponse {
    let next = format!("Next step: start the proxy with {HEAP_PROFILING_ENV}");
    text(
        StatusCode::NOT_IMPLEMENTED,
        format!("heap profiling is not available. {next}\n"),
    )
}

async fn set_heap_profiling(enabled: bool) -> HttpResponse {
    let Some(control) = PROF_CTL.as_ref() else {
        return profiling_unavailable();
    };
    let mut control = control.lock().await;
    let result = if enabled {
        control.activate()
    } else {
        control.deactivate()
    };
    match result {
        Ok(()) => text(
            StatusCode::OK,
            format!("heap profiling active: {enabled}\n"),
        ),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

async fn heap() -> HttpResponse {
    let Some(control) = PROF_CTL.as_ref() else {
        return profiling_unavailable();
    };
    let mut control = control.lock().await;
    if !control.activated() {
        let next = "Next step: POST /debug/pprof/heap/profiling?activate=true, then wait a while";
        return text(
            StatusCode::CONFLICT,
            format!("heap profiling is not active. {next}\n"),
        );
    }
    match control.dump_pprof() {
        Ok(encoded) => bytes("application/octet-stream", encoded),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e:#}\n")),
    }
}
