//! Questions to the API server, and through it to programs that listen on the loopback of a pod.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::{Method, Request, StatusCode};
use kubernetes::{Client, ListParams, Pod};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::ask::over;

/// A program that has not answered by then hangs.
const DEADLINE: Duration = Duration::from_secs(10);
/// So many objects are asked for at once.
const PAGE: u32 = 500;

/// Something that is done with a kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) verb: &'static str,
    pub(crate) group: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) subresource: &'static str,
}

impl Right {
    pub(crate) const fn new(verb: &'static str, group: &'static str, resource: &'static str) -> Self {
        Self { verb, group, resource, subresource: "" }
    }

    pub(crate) const fn sub(self, subresource: &'static str) -> Self {
        Self { subresource, ..self }
    }

    /// As people say it, such as `create pods/portforward`.
    pub(crate) fn text(&self) -> String {
        let slash = if self.subresource.is_empty() { "" } else { "/" };
        format!("{} {}{slash}{}", self.verb, self.resource, self.subresource)
    }
}

/// A cluster's API.
#[derive(Clone)]
pub(crate) struct Api(Client);

impl Api {
    pub(crate) async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self(kubernetes::connect_as_person(kubeconfig, context).await?))
    }

    /// An object, or a list.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = Request::get(path).body(Vec::new())?;
        Ok(timeout(DEADLINE, self.0.request(request)).await.with_context(late)??)
    }

    /// All pods, by pages.
    pub(crate) async fn pods(&self) -> anyhow::Result<Vec<Pod>> {
        let api = kubernetes::Api::<Pod>::all(self.0.clone());
        let mut params = ListParams::default().limit(PAGE);
        let mut pods = Vec::new();
        loop {
            let page = timeout(DEADLINE, api.list(&params)).await.with_context(late)??;
            pods.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(pods),
            }
        }
    }

    /// Whether somebody may do something; without a name, whether whoever asks may.
    pub(crate) async fn may(&self, who: Option<&str>, right: Right, namespace: Option<&str>) -> anyhow::Result<bool> {
        let mut attributes = json!({
            "verb": right.verb, "group": right.group, "resource": right.resource, "subresource": right.subresource,
        });
        if let Some(namespace) = namespace {
            attributes["namespace"] = json!(namespace);
        }
        let (kind, spec) = match who {
            None => ("SelfSubjectAccessReview", json!({ "resourceAttributes": attributes })),
            Some(user) => ("SubjectAccessReview", json!({ "resourceAttributes": attributes, "user": user })),
        };
        let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec });
        let path = format!("/apis/authorization.k8s.io/v1/{}s", kind.to_ascii_lowercase());
        let request = Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(serde_json::to_vec(&review)?)?;
        let answer: Value = timeout(DEADLINE, self.0.request(request)).await.with_context(late)??;
        Ok(answer["status"]["allowed"] == true)
    }

    /// Asks a program that listens on the loopback of a pod.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, pod: &Pod, port: u16, path: &str) -> anyhow::Result<T> {
        timeout(DEADLINE, self.exchange(pod, port, path)).await.with_context(late)?
    }

    async fn exchange<T: DeserializeOwned>(&self, pod: &Pod, port: u16, path: &str) -> anyhow::Result<T> {
        let api = kubernetes::Api::<Pod>::namespaced(self.0.clone(), pod.namespace());
        let mut forward = api.portforward(pod.name(), &[port]).await?;
        let stream = forward.take_stream(port).ok_or_else(|| anyhow!("no stream"))?;
        let (status, body) = over(stream, Method::GET, "localhost", path).await?;
        if status != StatusCode::OK {
            bail!("{status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(serde_json::from_slice(&body)?)
    }
}

fn late() -> String {
    format!("no answer within {} s", DEADLINE.as_secs())
}
