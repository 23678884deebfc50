//! The control plane: the mesh by delta discovery, certificates by `CreateCertificate`.

mod ads;
mod ads_client;
mod backoff;
mod ca_client;
mod demand;
mod node;
mod proxy_config;
mod roots;
mod server;
mod settings;
mod status;
mod token;

pub(crate) use ads_client::{Discovery, Newest, Outlets, follow};
pub(crate) use ca_client::CaClient;
pub(crate) use demand::Demand;
pub(crate) use server::ConnectError;
pub(crate) use settings::{Context, Options, SettingError, Settings};
pub(crate) use status::{Report, Status};
pub(crate) use token::TokenError;
