//! Requests to the API server, and through it to the loopback addresses of pods.

use std::time::Duration;

use anyhow::Context;
use http::{Method, Request};
use kubernetes::{Client, ListParams, Pod};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Target;
use crate::admin_client::request_over;

/// Timeout of a request.
const DEADLINE: Duration = Duration::from_secs(10);
/// Objects per page of a list.
const PAGE_SIZE: u32 = 500;

/// A permission: a verb on a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permission {
    pub(crate) verb: &'static str,
    pub(crate) group: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) subresource: &'static str,
    /// Name of the only object; empty for all.
    pub(crate) name: &'static str,
}

impl Permission {
    pub(crate) const fn new(
        verb: &'static str,
        group: &'static str,
        resource: &'static str,
    ) -> Self {
        Self {
            verb,
            group,
            resource,
            subresource: "",
            name: "",
        }
    }

    pub(crate) const fn on_subresource(self, subresource: &'static str) -> Self {
        Self {
            subresource,
            ..self
        }
    }

    pub(crate) const fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// Renders the permission, such as `create pods/portforward`.
    pub(crate) fn text(&self) -> String {
        let slash = if self.subresource.is_empty() { "" } else { "/" };
        format!("{} {}{slash}{}", self.verb, self.resource, self.subresource)
    }
}

/// A client of a cluster's API.
#[derive(Clone)]
pub(crate) struct Api(Client);

impl Api {
    pub(crate) async fn connect(target: &Target) -> anyhow::Result<Self> {
        let (kubeconfig, context) = (target.kubeconfig.as_deref(), target.context.as_deref());
        let client = kubernetes::connect_as_user(kubeconfig, context).await?;
        Ok(Self(client))
    }

    /// Gets an object or a list.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        in_time(self.0.request(Request::get(path).body(Vec::new())?)).await
    }

    /// Lists all pods, in pages.
    pub(crate) async fn pods(&self) -> anyhow::Result<Vec<Pod>> {
        let api = kubernetes::Api::<Pod>::all(self.0.clone());
        let mut params = ListParams::default().limit(PAGE_SIZE);
        let mut pods = Vec::new();
        loop {
            let page = in_time(api.list(&params)).await?;
            pods.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(pods),
            }
        }
    }

    /// Whether a user has a permission; without a user, the current one.
    pub(crate) async fn is_allowed(
        &self,
        user: Option<&str>,
        permission: Permission,
        namespace: Option<&str>,
    ) -> anyhow::Result<bool> {
        let mut attributes = json!({
            "verb": permission.verb,
            "group": permission.group,
            "resource": permission.resource,
            "subresource": permission.subresource,
            "name": permission.name,
        });
        if let Some(namespace) = namespace {
            attributes["namespace"] = json!(namespace);
        }
        let mut spec = json!({ "resourceAttributes": attributes });
        let mut kind = "SelfSubjectAccessReview";
        if let Some(user) = user {
            spec["user"] = json!(user);
            kind = "SubjectAccessReview";
        }
        let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec });
        let resource = kind.to_ascii_lowercase();
        let path = format!("/apis/authorization.k8s.io/v1/{resource}s");
        let request = Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(serde_json::to_vec(&review)?)?;
        let review: Value = in_time(self.0.request(request)).await?;
        Ok(review["status"]["allowed"] == true)
    }

    /// Sends a GET request to a program that listens on the loopback address of a pod.
    pub(crate) async fn query_pod<T: DeserializeOwned>(
        &self,
        pod: &Pod,
        port: u16,
        path: &str,
    ) -> anyhow::Result<T> {
        let exchange = async {
            let api = kubernetes::Api::<Pod>::namespaced(self.0.clone(), pod.namespace());
            let mut forward = api.portforward(pod.name(), &[port]).await?;
            let stream = forward.take_stream(port);
            let stream = stream.context("port forward has no stream")?;
            request_over(stream, Method::GET, "localhost", path).await
        };
        in_time(exchange).await?.parse().map_err(anyhow::Error::msg)
    }
}

/// Waits for a response until [`DEADLINE`].
async fn in_time<T, E: Into<anyhow::Error>>(
    response: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    let response = timeout(DEADLINE, response).await;
    let no_response = || format!("no response within {} s", DEADLINE.as_secs());
    response.with_context(no_response)?.map_err(Into::into)
}
